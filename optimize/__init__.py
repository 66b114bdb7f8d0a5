"""A model-optimization compiler: one typed recipe in, one verified engine and one report out."""

from optimize.version import __version__

__all__ = ["__version__"]
