"""Raising a model's standard opset, when an operator that a pass writes is newer than the model."""

from __future__ import annotations

import onnx_ir as ir

from passes.base import PassFailed

IR_VERSIONS = {20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 12}
"""Least IR version for an opset (onnx/docs/Versioning.md)."""


def current(model: ir.Model) -> int:
    """The model's standard opset."""
    return int(model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1)))


def lift(model: ir.Model, least: int, why: str = "a fused operator") -> bool:
    """Convert `model` to standard opset `least` in place, if it is below.

    From below opset 18 every node and value is made anew, under its name and with its metadata.

    Args:
        model: The model.
        least: Lowest version that will do.
        why: What needs it, for the message: "INT4 with block scales".

    Returns:
        Whether it was converted: nodes and values found before are then no longer the model's.

    Raises:
        PassFailed: When an operator in the model cannot be converted.
    """
    before = current(model)
    if before >= least:
        return False
    # onnxscript takes a while to import; reading a recipe, which imports every pass it names, should not wait
    from onnxscript import version_converter
    from onnxscript.version_converter._version_converter import VersionConverterError

    known = _metadata(model)
    try:
        version_converter.convert_version(model, least, fallback=True)
    except VersionConverterError as fault:
        raise PassFailed(
            f"{why} needs opset {least}, this model has {before} and cannot be converted: {fault}. "
            f"Export it with opset {least} or newer."
        ) from fault
    if current(model) < least:
        raise PassFailed(
            f"{why} needs opset {least}, this model has {before} and the converter stopped at "
            f"{current(model)}. Export it with opset {least} or newer."
        )
    for node in model.graph.all_nodes():
        for key, text in known.get(_result(node), {}).items():
            node.metadata_props.setdefault(key, text)
    model.ir_version = max(model.ir_version, IR_VERSIONS.get(least, 10))
    return True


def _metadata(model: ir.Model) -> dict[str, dict[str, str]]:
    """Each node's metadata by the name of its first result; what branches name alike only where they agree."""
    known: dict[str, dict[str, str]] = {}
    for node in model.graph.all_nodes():
        own = dict(node.metadata_props)
        if known.setdefault(_result(node), own) != own:
            known[_result(node)] = {}
    return known


def _result(node: ir.Node) -> str:
    return next((value.name for value in node.outputs if value.name), "")
