"""Passes of the room `cast`."""
