"""Passes of the room `fuse`."""
