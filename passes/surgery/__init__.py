"""Passes of the room `surgery`."""
