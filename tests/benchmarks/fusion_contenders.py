"""The seven ways to run a model that docs/fusion-latency.md compares, each as a call without arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch

from passes import registry
from tests.benchmarks import fusion_models
from tests.support import zoo
from tests.support.runner import context, session

THREADS = 2
WARM_UP = 3
SAME = 2.0**-10
"""Largest difference to torch eager, of the largest value: a rewrite's 2**-14 times 2**4 for a chain of them."""

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[], Array]
PLAIN, OURS = "ONNX Runtime", "ours"


def plain(path: Path) -> ir.Model:
    """The export as it is."""
    return ir.load(path)


def transformer_optimizer(path: Path) -> ir.Model:
    """What ONNX Runtime's transformer optimizer makes of it."""
    from onnxruntime.transformers import optimizer

    target = path.with_suffix(".optimizer.tmp")
    optimizer.optimize_model(str(path), model_type="bert", opt_level=0).save_model_to_file(str(target))
    return ir.load(target)


def slim(path: Path) -> ir.Model:
    """What OnnxSlim makes of it."""
    import onnxslim

    made: ir.Model = ir.from_proto(onnxslim.slim(onnx.load(path)))
    return made


def for_ort(path: Path) -> ir.Model:
    """What onnxscript's optimize_for_ort makes of it."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    made: ir.Model = optimize_for_ort(ir.load(path))[0]
    return made


def ours(path: Path) -> ir.Model:
    """What the recipe item `fuse` makes of it."""
    model = ir.load(path)
    for name in registry.room_default("fuse"):
        registry.find(name)().apply(model, context())
    return model


GRAPHS: dict[str, Callable[[Path], ir.Model]] = {
    PLAIN: plain,
    "its transformer optimizer": transformer_optimizer,
    "OnnxSlim": slim,
    "optimize_for_ort": for_ort,
    OURS: ours,
}


@dataclasses.dataclass(frozen=True)
class Field:
    """The contenders for one model.

    Attributes:
        runs: Calls by contender.
        reasons: Why the others cannot take part.
        graphs: The file of each contender that ONNX Runtime runs.
        feeds: Inputs by name.
        modules: The two contenders that torch runs.
    """

    runs: dict[str, Run]
    reasons: dict[str, str]
    graphs: dict[str, Path]
    feeds: dict[str, Array]
    modules: dict[str, Run]


def contenders(name: str, cache: Path, without: list[str]) -> Field:
    """Make every contender ready; files that `cache` has are not made again."""
    example = fusion_models.build(name)
    feeds = {key: tensor.numpy() for key, tensor in example.inputs.items()}
    torch.set_num_threads(THREADS)
    field = Field({}, {}, {}, feeds, {})
    # models share code, and torch falls back to eager for code that it compiled eight times
    torch.compiler.reset()
    compiled = torch.compile(example.module)
    modules = {"torch eager": _module(example, example.module), "torch.compile": _module(example, compiled)}
    path = cache / f"{name}.onnx"
    if not path.exists():
        ir.save(zoo.exported(example, fusion_models.LONGEST), path)
    expected = modules["torch eager"]()
    for contender in (*modules, *GRAPHS):
        if contender in without:
            field.reasons[contender] = "left out of this run"
            continue
        try:
            if contender in GRAPHS:
                field.graphs[contender] = _graph(contender, path)
            run = modules[contender] if contender in modules else _session(field.graphs[contender], feeds)
            found = [run() for _ in range(WARM_UP)][-1]
        except Exception as error:  # a contender that cannot run is a row's finding, not this command's fault
            field.reasons[contender] = f"cannot run: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
            continue
        apart = float(np.abs(found - expected).max() / np.abs(expected).max())
        if apart > SAME:
            field.reasons[contender] = f"gives other numbers: {apart:.1e} of the largest value"
            continue
        field.runs[contender] = run
        if contender in modules:
            field.modules[contender] = run
    return field


def _module(example: zoo.Example, module: Callable[..., Any]) -> Run:
    tensors = list(example.inputs.values())

    def run() -> Array:
        with torch.inference_mode():
            found: Array = module(*tensors).numpy()
        return found

    return run


def _graph(contender: str, path: Path) -> Path:
    target = path.with_suffix(f".{contender.replace(' ', '-')}.onnx")
    if contender == OURS or not target.exists():  # the passes may have changed since
        ir.save(GRAPHS[contender](path), target)
    return target


def _session(path: Path, feeds: dict[str, Array]) -> Run:
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    opened = session(ir.load(path), level=level, threads=THREADS)

    def run() -> Array:
        found: Array = opened.run(None, feeds)[0]
        return found

    return run
