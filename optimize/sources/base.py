"""What every source is: it captures a model as ONNX and keeps a way to run the original."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import onnx_ir as ir

from optimize.engines.base import AxisRange, Progress, Session, TensorSpec


@dataclasses.dataclass(frozen=True)
class Capture:
    """A model on its way in.

    Attributes:
        model: The exported graph; weights lazy or shared with the source.
        inputs: Inputs as the user named them.
        outputs: Outputs as the user named them.
        ranges: Range of every named dynamic axis.
        exporter: What made the graph: "torch.onnx.export(dynamo=True), torch 2.13.0".
        notes: Full sentences worth reporting (an exporter that failed first, and why).
        checks: Figures of export checks at several shapes: [{"shape": {...}, "max_abs": 1e-7, ...}].
    """

    model: ir.Model
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: Mapping[str, AxisRange]
    exporter: str
    notes: tuple[str, ...] = ()
    checks: tuple[Mapping[str, Any], ...] = ()


class Source(Protocol):
    """Where a model comes from. Constructing one touches no file and imports nothing heavy."""

    kind: ClassVar[str]

    def check(self) -> str | None:
        """Why it cannot be captured here (missing file or library), without running user code, or None."""
        ...

    def files(self) -> tuple[Path, ...]:
        """Files whose contents decide the result, as far as known before running anything."""
        ...

    def capture(self, progress: Progress) -> Capture:
        """Export.

        Raises:
            UsageError: When the user's code or file is wrong.
            StageFailed: When no exporter can take the model; one line why for each.
        """
        ...

    def original(
        self, *, threads: int | None = None, compiled: bool = False, device: Literal["cpu", "cuda"] = "cpu"
    ) -> Session:
        """The original as a session: torch (eager or compiled) for torch sources, else unoptimised ORT.

        Where `device` cannot be had, and always for ONNX, it runs on the CPU.
        """
        ...
