"""Our side of each case: passes by recipe name, with options, and engine options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from style import Style

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
        options: Of the engine.
        opset: Opset to export at, or the exporter's own choice.
        style: How an encoder is spelt before it is exported.
    """

    name: str
    steps: tuple[Step, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    opset: int | None = None
    style: Style | None = None


PLAIN = Variant("TensorRT-RTX, plain export", ())
CURRENT = {"compute_capabilities": ("current",)}
"""Engine options: build for this GPU ahead of time, instead of for every one."""

PLAIN_HERE = Variant("TensorRT-RTX, plain export, built for this GPU", (), options=CURRENT)
CLEAN: tuple[Step, ...] = (("clean", {}),)
FUSED: tuple[Step, ...] = (*CLEAN, ("fuse", {}))


def _int4(block: int) -> Step:
    return ("quantize.int4", {"block_size": block})


HEADS: tuple[Step, ...] = (*FUSED, ("surgery.plain_attention", {}), ("surgery.stacked_heads", {}))


def _gelu(form: str) -> Step:
    return ("surgery.gelu_tanh", {"form": form})


MERGED: tuple[Step, ...] = (*FUSED, ("fuse.qkv_merge", {}), _gelu("operator"))


def _by_plugin(name: str, *layers: str) -> Variant:
    return Variant(f"ours: {name} by plugin", MERGED, options={"plugins": ("builtin",), "plugin_layers": layers})


BY_PLUGIN = (
    _by_plugin("attention", "attention"),
    _by_plugin("products and attention", "products", "attention"),
    _by_plugin("products, attention and norms", "products", "attention", "norms"),
)
ENCODER = (
    *BY_PLUGIN,
    Variant("ours: clean", CLEAN),
    Variant("ours: GELU by Tanh", (*CLEAN, _gelu("operator"))),
    Variant("ours: GELU by Sigmoid", (*CLEAN, _gelu("sigmoid"))),
    Variant("ours: heads stacked, GELU by Tanh", (*HEADS, _gelu("operator"))),
    Variant("ours: heads stacked, GELU by Tanh spelt out", (*HEADS, _gelu("tanh"))),
    Variant("ours: heads stacked, GELU by Sigmoid", (*HEADS, _gelu("sigmoid"))),
    Variant("ours: heads stacked, GELU by Sigmoid, for this GPU", (*HEADS, _gelu("sigmoid")), options=CURRENT),
    Variant("ours: attention plain, GELU by Sigmoid", (*FUSED, ("surgery.plain_attention", {}), _gelu("sigmoid"))),
    Variant("spelt flat, GELU by Sigmoid", (*CLEAN, _gelu("sigmoid")), style=Style(flat=True)),
    Variant("spelt flat, heads stacked, GELU by Sigmoid", (*HEADS, _gelu("sigmoid")), style=Style(flat=True)),
    Variant("spelt flat, heads stacked, GELU by Tanh", (*HEADS, _gelu("operator")), style=Style(flat=True)),
    Variant("spelt flat, QKV merged, GELU by Tanh", CLEAN, style=Style(flat=True, merged=True, gelu="tanh")),
)
DECODE = (
    Variant("ours: clean", CLEAN),
    Variant("ours: clean, fuse", FUSED),
    Variant("ours: INT4 block 128", (*CLEAN, _int4(128))),
    Variant("ours: INT4 block 128, built for this GPU", (*CLEAN, _int4(128)), options=CURRENT),
    Variant("ours: INT4 block 256", (*CLEAN, _int4(256))),
    Variant(
        "ours: INT8 block 128, built-in plugin",
        (*CLEAN, ("quantize.int8_blocks", {"block_size": 128})),
        options={"plugins": ("builtin",)},
    ),
)
SPACE_TO_DEPTH: Step = ("surgery.stem_space_to_depth", {})


def _padded(multiple: int) -> Step:
    return ("surgery.pad_channels", {"multiple": multiple})


RESNET = (
    Variant("ours: clean, fuse", FUSED),
    Variant("ours: stem on blocks", (*FUSED, SPACE_TO_DEPTH)),
    Variant("ours: stem on blocks, 16 channels", (*FUSED, SPACE_TO_DEPTH, _padded(16))),
    Variant("ours: stem on blocks, built for this GPU", (*FUSED, SPACE_TO_DEPTH), options=CURRENT),
    Variant("ours: stem on 4 channels", (*FUSED, _padded(4))),
    Variant("ours: stem on 8 channels", (*FUSED, _padded(8))),
    Variant("ours: stem on 16 channels", (*FUSED, _padded(16))),
)  # fmt: skip


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
