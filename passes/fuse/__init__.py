"""Fusion: several operators become one that the target runs faster."""

DEFAULT = (
    "shape_arithmetic",
    "layout",
    "layer_norm",
    "rms_norm",
    "group_norm",
    "gelu",
    "silu",
    "rotary",
    "softmax_guard",
    "attention",
    "conv_batch_norm",
    "conv_bias",
    "matmul_bias",
    "skip_norm",
)
"""What a recipe's bare `fuse` runs, in order. Norms and activations first: they are the landmarks that the
later passes look for. `matmul_bias` and `skip_norm` last: they reshape what the others match on."""
