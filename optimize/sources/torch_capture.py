"""Export a PyTorch module and check the export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optimize.engines.base import Progress
from optimize.errors import StageFailed
from optimize.sources.base import Capture
from optimize.sources.export_check import CannotCompare, check_export
from optimize.sources.graph_specs import specs
from optimize.sources.onnx_load import refuse_nan
from optimize.sources.torch_export import Exported, export_module
from optimize.sources.torch_model import TorchModel
from optimize.sources.torch_tensors import to_numpy


def capture_module(source: TorchModel, opset: int | None, progress: Progress) -> Capture:
    """Export, then compare with the original at several shapes.

    Raises:
        StageFailed: When no exporter can take it, or the export differs from the original.
        UsageError: When the original cannot run at a shape of its ranges.
    """
    return checked(source, export_module(source, opset, progress), progress)


def checked(source: TorchModel, exported: Exported, progress: Progress) -> Capture:
    """Compare an export with its original at several shapes.

    Raises:
        StageFailed: When they differ.
        UsageError: When the original cannot run at a shape of its ranges.
    """
    outputs = specs(exported.model.graph.outputs)
    examples = {name: to_numpy(tensor) for name, tensor in source.inputs.items()}
    refuse_nan(exported.model, "the module", progress)
    notes = (*source.notes, *exported.notes)
    checks: tuple[Mapping[str, Any], ...] = ()
    try:
        checks = check_export(
            exported.model, source.session(outputs), examples, source.axes, source.ranges, progress
        )
    except CannotCompare as error:
        notes = (*notes, f"The export was not compared with the original: {error}.")
    except StageFailed as error:
        if not exported.notes:
            raise
        # Why the exporters before failed mostly tells why this one's graph is wrong.
        raise StageFailed("\n".join((error.message, *exported.notes)), hint=error.hint) from error
    return Capture(
        model=exported.model,
        inputs=source.input_specs(),
        outputs=outputs,
        ranges=source.ranges,
        exporter=exported.exporter,
        notes=notes,
        checks=checks,
    )
