"""Compile the kernels of dense products, attention and norms without a GPU, as their launches would.

    python -m tests.support.tensorrt_plugin.compiled_dense CAPABILITY …       # 80 86 89 90

Prints as JSON the bytes of shared memory that a program takes, by capability and kernel.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from optimize.engines import tensorrt_attention_kernels as attending
from optimize.engines import tensorrt_dense_kernels as dense
from optimize.engines.tensorrt_dense_choice import Cut, Form, choose, choose_attention, choose_norm

PRODUCTS = ((4096, 3072, 768, False), (4096, 768, 768, True), (16, 128, 128, True), (100, 64, 128, False))
"""Rows, N, K, and whether there is a residual."""

ATTENTIONS = ((128, 64), (512, 64), (512, 128), (16, 16))
"""Tokens and the size of a head."""

NORMS = (768, 4096)


def compiled(kernel: Any, capability: int, signature: dict[str, str], constants: dict[str, Any], warps: int) -> int:
    """Shared memory of a program."""
    pointers = [index for index, kind in enumerate(signature.values()) if kind.startswith("*")]
    source = triton.compiler.ASTSource(
        kernel, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants,
        attrs={(index,): [["tt.divisibility", 16]] for index in pointers},
    )  # fmt: skip
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    return int(made.metadata.shared)


def product(capability: int, rows: int, n: int, k: int, residual: bool) -> int:
    """One product; described operands are tensor descriptors of their blocks."""
    form = Form.PLAIN if residual else Form.GELU_TANH
    cut: Cut = choose(rows, n, k, residual, False, capability)
    x = w = more = "*fp16"
    if cut.described:
        x = f"tensordesc<fp16[{cut.rows}, {cut.depth}]>"
        w, more = (f"tensordesc<fp16[{cut.depth}, {width}]>" for width in (cut.columns, cut.more or cut.columns))
    signature = {"x": x, "w": w, "w_more": more, "bias": "*fp16", "residual": "*fp16", "y": "*fp16", "M": "i32"}
    constants = dense.constants(dense.Sizes(rows, n, k, form), cut, residual, assembly=True)
    return compiled(dense.product, capability, signature, constants, cut.warps)


def attention(capability: int, tokens: int, size: int) -> int:
    """One attention."""
    cut = choose_attention(tokens, size)
    constants = {"HEADS": 2, "SIZE": size, "ROWS": cut.rows, "KEYS": cut.keys, "STAGES": cut.stages}
    signature = {"qkv": "*fp16", "y": "*fp16", "TOKENS": "i32", "scale": "fp32"}
    return compiled(attending.attention, capability, signature, constants, cut.warps)


def norm(capability: int, width: int) -> int:
    """One layer normalisation."""
    cut = choose_norm(width)
    constants = {"WIDTH": width, "BLOCK": triton.next_power_of_2(width), "ROWS": cut.rows}
    signature = {"x": "*fp16", "weights": "*fp16", "y": "*fp16", "M": "i32", "epsilon": "fp32"}
    return compiled(attending.layer_norm, capability, signature, constants, cut.warps)


def main(capabilities: list[int]) -> None:
    """Compile every kernel for every capability."""
    found: dict[str, dict[str, int]] = {}
    for capability in capabilities:
        found[str(capability)] = {
            **{f"product {sizes}": product(capability, *sizes) for sizes in PRODUCTS},
            **{f"attention {sizes}": attention(capability, *sizes) for sizes in ATTENTIONS},
            **{f"norm {width}": norm(capability, width) for width in NORMS},
        }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
