"""The version of the distribution `model-optimize`."""

__version__ = "0.1.0"
