"""Spellings of one computation; apart from the modules, so that reading a variant imports no torch."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Style:
    """How an encoder spells the same computation, for builders that tell spellings apart.

    Attributes:
        flat: Keep `(batch · tokens, width)` between attentions, so that linear layers are `Gemm` on rank 2.
        merged: Query, key and value from one product.
        gelu: `exact`: GELU in one operator; `erf`: written out in the activations' type; `tanh`: its usual
            approximation, off by at most 5e-4.
    """

    flat: bool = False
    merged: bool = False
    gelu: Literal["exact", "erf", "tanh"] = "exact"
