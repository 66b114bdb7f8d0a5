"""Compile the built-in plugin's kernels without a GPU, as their launches would.

    python -m tests.support.tensorrt_plugin.compiled CAPABILITY,ROWS,N,K,BLOCK …       # 90,16,4096,14336,128

Prints as JSON, for each case in turn, the bytes of shared memory that a program takes.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from optimize.engines import tensorrt_plugin_kernels as kernels
from optimize.engines.tensorrt_plugin_choice import Rowwise, choose

POINTERS = {"x": "*fp16", "codes": "*u8", "scales": "*fp16"}


def compile_for(capability: int, rows: int, n: int, k: int, block: int) -> Any:
    """The compiled product of these sizes."""
    blocks = -(-k // block)
    sizes: dict[str, Any] = {"N": n, "K": k, "BLOCKS": blocks, "BLOCK": block, "ASSEMBLY": True}
    cut = choose(rows, n, blocks, block)
    signature = {**POINTERS, "y": "*fp16"}
    if isinstance(cut, Rowwise):
        kernel = kernels.one_row
        sizes |= {"CHANNELS": cut.channels, "TURN": cut.blocks, "STAGES": cut.stages}
    else:
        kernel = kernels.tiles
        signature |= {"y": "*fp16" if cut.split == 1 else "*fp32", "M": "i32"}
        sizes |= {"ROWS": cut.rows, "CHANNELS": cut.channels, "SPLIT": cut.split, "STAGES": cut.stages}
    signature |= dict.fromkeys(sizes, "constexpr")
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(4)}
    source = triton.compiler.ASTSource(kernel, signature, constexprs=sizes, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": cut.warps})


if __name__ == "__main__":
    made = [compile_for(*map(int, case.split(","))) for case in sys.argv[1:]]
    sys.stdout.write(json.dumps([kernel.metadata.shared for kernel in made]) + "\n")
