"""Passes of the room `quantize`."""
