"""Our side of each case: passes by recipe name, with options, and engine options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from passes import registry
from passes.base import PassContext
from passes.target import Target

Step = tuple[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to optimise a case.

    Attributes:
        name: As the table spells it.
        steps: Passes in order; a room's bare name stands for its default list.
        needs_plugins: Whether it takes layers from a plugin library.
        options: Of the engine.
        opset: Opset to export at, or the exporter's own choice.
    """

    name: str
    steps: tuple[Step, ...]
    needs_plugins: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    opset: int | None = None


PLAIN = Variant("TensorRT-RTX, plain export", ())
CURRENT = {"compute_capabilities": ("current",)}
"""Engine options: build for this GPU ahead of time, instead of for every one."""

PLAIN_HERE = Variant("TensorRT-RTX, plain export, built for this GPU", (), options=CURRENT)
CLEAN: tuple[Step, ...] = (("clean", {}),)
FUSED: tuple[Step, ...] = (*CLEAN, ("fuse", {}))
CONVOLUTIONS: tuple[Step, ...] = (*CLEAN, ("fuse.conv_batch_norm", {}), ("fuse.conv_bias", {}))


def _int4(block: int, **more: Any) -> Step:
    return ("quantize.int4", {"block_size": block, **more})


def _planes(block: int, form: str) -> Step:
    return ("quantize.int4_planes", {"block_size": block, "form": form})


_NBITS = {"form": "matmulnbits", "accuracy_level": 0}

ENCODER = (
    Variant("ours: clean, fuse", FUSED),
    Variant("ours: clean, fuse, built for this GPU", FUSED, options=CURRENT),
    Variant("ours: clean", CLEAN),
    Variant("ours: clean, built for this GPU", CLEAN, options=CURRENT),
)
DECODE = (
    Variant("ours: clean, fuse", FUSED),
    Variant("ours: INT4 block 128", (*CLEAN, _int4(128))),
    Variant("ours: INT4 block 128, built for this GPU", (*CLEAN, _int4(128)), options=CURRENT),
    Variant("ours: INT4 block 32", (*CLEAN, _int4(32))),
    Variant("ours: INT4 block 128, plugin", (*CLEAN, _int4(128, **_NBITS)), needs_plugins=True),
    Variant("ours: INT4 block 32, plugin", (*CLEAN, _int4(32, **_NBITS)), needs_plugins=True),
    Variant("ours: two INT4 planes block 128", (*CLEAN, _planes(128, "standard"))),
    Variant("ours: two INT4 planes block 128, plugin", (*CLEAN, _planes(128, "matmulnbits")), needs_plugins=True),
    Variant("ours: two INT4 planes block 32, plugin", (*CLEAN, _planes(32, "matmulnbits")), needs_plugins=True),
)
RESNET = (
    Variant("ours: clean, fuse", FUSED),
    Variant("ours: clean, fuse, built for this GPU", FUSED, options=CURRENT),
    Variant("ours: clean, convolutions", CONVOLUTIONS),
)


def apply(variant: Variant, model: ir.Model, target: Target, scratch: str) -> list[str]:
    """Run the variant's passes on `model`; returns one line per pass with what it rewrote.

    A room without a default list is left out and said so; a pass named by itself must be there.

    Raises:
        registry.UnknownPass: When a pass named by itself is not there.
    """
    lines = []
    for name, options in variant.steps:
        try:
            names = registry.room_default(name) if name in registry.ROOMS else (name,)
        except registry.UnknownPass as absent:
            lines.append(f"{name}: left out: {absent}")
            continue
        for one in names:
            made = registry.find(one)(**options)
            result = made.apply(model, PassContext(target=target, scratch=scratch))
            found = ", ".join(f"{pattern.name} {pattern.found}" for pattern in result.patterns)
            lines.append(f"{one}: {found or f'{result.rewrites} rewrites'}")
    return lines
