"""Finished runs on disk with a real ONNX file, a real engine and a report that names both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from optimize import onnx_files
from optimize.engines.base import AxisRange, BuildRequest
from optimize.engines.onnxruntime import OnnxRuntimeEngine
from optimize.facts import ArtifactFact
from optimize.report.model import Report
from optimize.report.writing import write
from tests.support import reports

TINY = """
    <ir_version: 10, opset_import: ["" : 20]>
    tiny (float[batch,4] x) => (float[batch,2] y)
    <float[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = MatMul(x, w) }
"""


def finish(
    directory: Path, text: str = TINY, *, report: Report | None = None, is_external: bool = False, **changes: Any
) -> Report:
    """Write what `optimize run` leaves behind: model.onnx, engine/, recipe.resolved.yaml, the report's files."""
    (directory / "engine").mkdir(parents=True)
    model = onnx.parser.parse_model(text)
    external = "model.onnx.data" if is_external else None
    ir.save(ir.from_proto(model), directory / "model.onnx", external_data=external, size_threshold_bytes=0)
    artifact = OnnxRuntimeEngine().build(
        BuildRequest(
            model=directory / "model.onnx",
            directory=directory / "engine",
            ranges={"batch": AxisRange(1, 4, 16), "tokens": AxisRange(1, 16, 64)},
        ),
        lambda what, done, total: None,
    )
    digest, size = onnx_files.digest(directory / "model.onnx", onnx_files.sha256_of)
    artifacts = (
        ArtifactFact(label="optimized model", file="model.onnx", kind="onnx", sha256=digest, size_bytes=size),
        ArtifactFact(
            label="engine",
            file=artifact.path.relative_to(directory).as_posix(),
            kind=artifact.kind,
            sha256=artifact.sha256,
            size_bytes=artifact.size_bytes,
            made_by=artifact.made_by,
        ),
    )
    report = report or reports.passing()
    assert report.optimized is not None
    described = report.optimized.model_copy(
        update={"inputs": _described(model.graph.input), "outputs": _described(model.graph.output)}
    )
    report = report.model_copy(update={"artifacts": artifacts, "optimized": described, **changes})
    (directory / "recipe.resolved.yaml").write_text(f"schema_version: 1\nname: {report.name}\nbase: .\n")
    write(report, directory)
    return report


def _described(values: Any) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "name": value.name,
            "dtype": onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            "shape": [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        }
        for value in values
    )
