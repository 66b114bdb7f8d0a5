"""Surgery: rewrites for the kernels of one engine or device; none runs unless a recipe names it."""
