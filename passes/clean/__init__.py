"""Passes of the room `clean`."""
