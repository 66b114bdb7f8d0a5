"""Raising a model's standard opset, when an operator that a pass writes is newer than the model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import onnx_ir as ir

from passes import conversion
from passes.base import PassFailed

IR_VERSIONS = {
    10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10,
    23: 11, 24: 12, 25: 12,
}  # fmt: skip
"""Least IR version for an opset (onnx/docs/Versioning.md)."""

WEIGHTS_APART = 4
"""First IR version whose initializers need not be inputs."""


def current(model: ir.Model) -> int:
    """The model's standard opset."""
    return int(model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1)))


def lift(model: ir.Model, least: int, why: str = "a fused operator") -> bool:
    """Convert `model` to standard opset `least` in place, if it is below.

    Values keep their names, weights their tensors and nodes their notes, but graph and nodes may be new objects.

    Args:
        model: The model.
        least: Lowest version that will do.
        why: What needs it, for the message: "INT4 with block scales".

    Returns:
        Whether it was converted; what was found in the model before must then be found again.

    Raises:
        PassFailed: When an operator in the model cannot be converted.
    """
    before = current(model)
    if before >= least:
        return False
    # onnxscript takes a while to import; reading a recipe, which imports every pass it names, should not wait
    from onnx_ir.passes.common import InlinePass
    from onnxscript import version_converter
    from onnxscript.version_converter._version_converter import VersionConverterError

    if "ai.onnx" in model.opset_imports:  # the converter looks for the other spelling
        model.opset_imports[""] = model.opset_imports.pop("ai.onnx")
    reason = conversion.refusal(model, before, least)
    if not reason:
        if model.functions:  # the converter does so too, after which nothing would be known of their nodes
            InlinePass()(model)
        kept = conversion.remember(model)
        with _listening() as heard:
            try:
                version_converter.convert_version(model, least, fallback=True)
            except VersionConverterError as fault:
                heard.append(str(fault))
        if heard or current(model) < least:
            reason = heard[0] if heard else f"the converter stopped at {current(model)}"
    if reason:
        raise PassFailed(
            f"{why} needs opset {least}, this model has {before} and cannot be converted: {reason.strip()}. "
            f"Export it with opset {least} or newer."
        )
    conversion.restore(model, kept, before)
    model.ir_version = max(model.ir_version, IR_VERSIONS.get(least, WEIGHTS_APART))
    return True


class _Faults(logging.Handler):
    """Keeps why a conversion failed: onnxscript logs it and leaves the model, or a node, as it was."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._heard.append(str(record.exc_info[1]))
        elif str(record.msg).startswith("Skipping version conversion"):
            self._heard.append(record.getMessage())


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """What goes wrong inside, instead of the libraries' warnings on stderr."""
    heard: list[str] = []
    faults = _Faults(heard)
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    before = [(logger.propagate, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.propagate = False
            logger.setLevel(logging.WARNING)
            logger.addHandler(faults)
        yield heard
    finally:
        for logger, (propagate, level) in zip(loggers, before, strict=True):
            logger.removeHandler(faults)
            logger.propagate = propagate
            logger.setLevel(level)
