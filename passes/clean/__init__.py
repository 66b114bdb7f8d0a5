"""Cleaning: the same numbers from a smaller, tidier graph; what the other rooms expect to find."""

DEFAULT = (
    "names",
    "strip_metadata",
    "inline",
    "shapes",
    "fold_constants",
    "chains",
    "no_ops",
    "common_subexpressions",
    "dead_code",
)
"""What a recipe's bare `clean` runs, in order. Unique names first: everything after may write the model out.
Shapes before folding, which turns known shapes into constants; dead code last, to sweep what the others left."""
