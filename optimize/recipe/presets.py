"""Starting points for new recipes: which passes, for which engine, with which limits."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Preset:
    """A starting point.

    Attributes:
        summary: One line.
        target: A target's name.
        engine: An engine's kind.
        passes: Pass items as a recipe spells them, each with the comment that explains it.
        needs_calibration: Whether to write a calibration section.
        cosine: Limit for `accuracy.cosine.min`.
        speedup: Limit for `speedup_over_export.min`; None: no such gate.
    """

    summary: str
    target: str
    engine: str
    passes: tuple[tuple[str, str], ...]
    cosine: float
    needs_calibration: bool = False
    speedup: float | None = None


_CLEAN = ("clean", "constant folding, dead code, unique names")
_FUSE = ("fuse", "attention, normalisation, GELU, bias as one operator each")

PRESETS: dict[str, Preset] = {
    "fp32-cpu": Preset(
        "Cleaned and fused, in full precision, on a CPU.", "cpu", "onnxruntime", (_CLEAN, _FUSE), 0.9999
    ),
    "int8-cpu": Preset(
        "INT8 weights and activations on a CPU, no calibration data needed.",
        "cpu",
        "onnxruntime",
        (_CLEAN, _FUSE, ("quantize.int8", "weights per channel, activations as they come")),
        0.98,
        speedup=1.0,
    ),
    "int4-cpu": Preset(
        "INT4 weights in blocks on a CPU: the smallest file.",
        "cpu",
        "onnxruntime",
        (_CLEAN, _FUSE, ("quantize.int4", "weights only; activations stay as they are")),
        0.95,
    ),
    "fp16-tensorrt": Preset(
        "FP16 throughout on an NVIDIA GPU.",
        "h100",
        "tensorrt",
        (_CLEAN, _FUSE, ("cast.fp16", "layers whose range does not fit stay in FP32")),
        0.999,
        speedup=1.0,
    ),
    "int8-tensorrt": Preset(
        "INT8 with calibrated activations on an NVIDIA GPU.",
        "h100",
        "tensorrt",
        (
            _CLEAN,
            _FUSE,
            ("quantize.int8: {activations: static}", "Q/DQ pairs where the target's rules place them"),
            ("cast.fp16", "what is not quantized"),
        ),
        0.98,
        needs_calibration=True,
        speedup=1.0,
    ),
    "fp8-tensorrt": Preset(
        "FP8 (E4M3) with calibrated activations on an NVIDIA GPU of the Ada, Hopper or Blackwell family.",
        "h100",
        "tensorrt",
        (
            _CLEAN,
            _FUSE,
            ("quantize.fp8", "Q/DQ pairs where the target's rules place them"),
            ("cast.fp16", "what is not quantized"),
        ),
        0.98,
        needs_calibration=True,
        speedup=1.0,
    ),
}


def available() -> dict[str, Preset]:
    """The presets whose passes are all installed."""
    from passes import registry

    known = {*registry.ROOMS, *registry.names()}

    def is_known(item: str) -> bool:
        return item.partition(":")[0] in known

    return {name: preset for name, preset in PRESETS.items() if all(is_known(item) for item, _ in preset.passes)}
