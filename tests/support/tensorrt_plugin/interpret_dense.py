"""Run the kernels of dense products, attention and norms on the CPU, in Triton's interpreter.

    python -m tests.support.tensorrt_plugin.interpret_dense RESULTS.json

Writes the relative error of every case to torch in float32, by name.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # Read when the kernels' module is imported.

import torch
from torch.nn import functional
from triton.runtime import interpreter

from optimize.engines.tensorrt_attention_kernels import launch_attention, launch_layer_norm
from optimize.engines.tensorrt_dense_choice import Cut, Form
from optimize.engines.tensorrt_dense_kernels import Sizes, launch

BATCH, TOKENS, K, N = 2, 75, 128, 384
CUTS = {
    "plain": Cut(64, 128, group=2),
    "columns apart": Cut(64, 128, more=64, group=2),
    "described": Cut(64, 128, described=True, early=True, group=2),
    "described in turns": Cut(64, 128, more=64, described=True, turns=1, group=2),
}


def accept_counts() -> None:
    """Let loops run to counts that the interpreter holds as arrays of one, which NumPy 2.5 no longer takes."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float().reshape(-1) - wanted.reshape(-1)).norm() / wanted.norm())


def product(form: Form, cut: Cut, transposed: bool, residual: bool) -> float:
    """The error of one product."""
    torch.manual_seed(0)
    rows = BATCH * TOKENS
    x, w, bias = torch.randn(rows, K).half(), (torch.randn(K, N) / K**0.5).half(), torch.randn(N).half()
    added = torch.randn(rows, N).half() if residual else None
    y = torch.full((rows * N,), float("nan"), dtype=torch.float16)
    stored = w.T.contiguous() if transposed else w
    launch(x, stored, bias, added, y, Sizes(rows, N, K, form, transposed), cut, 2, assembly=False)
    wanted = x.float() @ w.float() + bias.float()
    if form in (Form.GELU_TANH, Form.GELU_ERF):
        wanted = functional.gelu(wanted, approximate="tanh" if form is Form.GELU_TANH else "none")
    if added is not None:
        wanted = wanted + added.float()
    return relative(y, wanted)


def attention(batch: int, tokens: int, heads: int, size: int) -> float:
    """The error of one attention."""
    torch.manual_seed(0)
    qkv = torch.randn(batch, tokens, 3 * heads * size).half()
    y = torch.full((batch, tokens, heads * size), float("nan"), dtype=torch.float16)
    launch_attention(qkv, y, batch, tokens, heads, size, size**-0.5)
    parts = (part.view(batch, tokens, heads, size).transpose(1, 2) for part in qkv.float().chunk(3, -1))
    return relative(y, functional.scaled_dot_product_attention(*parts).transpose(1, 2))


def norm(rows: int, width: int) -> float:
    """The error of one layer normalisation."""
    torch.manual_seed(0)
    x, weights = 3 * torch.randn(rows, width).half() + 1, torch.randn(2, width).half()
    y = torch.full_like(x, float("nan"))
    launch_layer_norm(x, weights, y, rows, width, 1e-5)
    return relative(y, functional.layer_norm(x.float(), (width,), weights[0].float(), weights[1].float()))


def main(results: str) -> None:
    """Compute every case."""
    accept_counts()
    found = {}
    for form in Form:
        for number, (name, cut) in enumerate(CUTS.items()):
            found[f"{form.name}, {name}"] = product(form, cut, bool(number % 3), residual=number % 2 == 0)
    for sizes in ((2, 128, 3, 64), (2, 75, 2, 32), (1, 200, 2, 64), (3, 13, 2, 16)):
        found[f"attention {sizes}"] = attention(*sizes)
    for rows, width in ((37, 768), (8, 100)):
        found[f"norm {rows} × {width}"] = norm(rows, width)
    Path(results).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
