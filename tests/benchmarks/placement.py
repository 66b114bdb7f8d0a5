"""What each rule of where quantizers stand costs and gains, on an engine: every rule turned round, one at a time.

    python -m tests.benchmarks.placement --engine onnxruntime --out docs/placement/DATE-PROCESSOR.json
    python -m tests.benchmarks.placement --engine tensorrt --target h200 --batch 32 --out results/placement.json
    python -m tests.benchmarks.placement --page

INT8 on ONNX Runtime's CPU, FP8 in TensorRT, of convolutional networks with random weights (`convolution_nets.py`).
All models of a network are open at once and run in turns. `--page` writes docs/placement.md from docs/placement/.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from optimize.engines import registry as engines
from optimize.engines.base import BuildRequest, Engine
from optimize.targets import loading
from passes import registry
from passes.base import PassContext
from passes.saving import save
from passes.target import Target
from tests.benchmarks import placement_page, processor
from tests.benchmarks.convolution_nets import NETS
from tests.support.calibration import Batches, normal
from tests.support.runner import run

BY_RULES = "by the target's rules"
TOOL = "ONNX Runtime's tool"
TOOL_REDUCED = "ONNX Runtime's tool, reduce_range"


def export(name: str, batch: int) -> ir.Model:
    """A network's ONNX form, its one input called x and its output y."""
    make, side = NETS[name]
    torch.manual_seed(0)
    example = (torch.randn(batch, 3, side, side),)
    program = torch.onnx.export(
        make().eval(), example, dynamo=True, input_names=["x"], output_names=["y"], verbose=False
    )
    assert program is not None
    model: ir.Model = program.model
    return model


def turned(target: Target, form: str) -> Iterator[tuple[str, Target, dict[str, Any]]]:
    """(what it is called, target, options of the pass) with one rule turned round each."""
    rules = target.quantize
    yield BY_RULES, target, {}
    changes: dict[str, dict[str, Any]] = {
        "skip connections": {"residual_adds": () if form in rules.residual_adds else (form,)},
        "pairs in front of what moves values": {
            "repeat_before": {} if rules.repeat_before else {form: ("Concat",)}
        },
    }
    if form == "fp8":
        for choice in ("channel", "tensor"):
            yield f"weights' scales per {choice}", target, {"weight_scales": choice}
        yield "convolutions in floating point", target, {"skip": ("Conv",)}
    if form == "int8":
        has = form in rules.convolution_results
        changes["convolutions' results"] = {"convolution_results": () if has else (form,)}
    for name, change in changes.items():
        sign = "without" if not next(iter(change.values())) else "with"
        yield f"{sign} {name}", target.model_copy(update={"quantize": rules.model_copy(update=change)}), {}
    for place, kept in (("first", rules.keep_first.get(form)), ("last", rules.keep_last.get(form))):
        choice = "quantize" if kept else "keep"
        yield f"{place} layer {'quantized' if kept else 'kept'}", target, {f"{place}_layer": choice}


def models(name: str, target: Target, form: str, batch: int) -> Iterator[tuple[str, ir.Model]]:
    """The floating-point network and its quantized forms, by what they are called."""
    half = target.dialect == "tensorrt"
    x = normal((batch, 3, NETS[name][1], NETS[name][1]), batches=2 if batch < 8 else 1)
    yield "FP16" if half else "FP32", _prepared(name, target, x, batch, half)
    for what, rules, options in turned(target, form):
        model = _prepared(name, target, x, batch, half)
        activations = {} if form == "fp8" else {"activations": "static"}
        made = registry.find(f"quantize.{form}")(**activations, **options)
        made.apply(model, PassContext(target=rules, run=run, calibration=x))
        yield what, model


def _prepared(name: str, target: Target, x: Batches, batch: int, half: bool) -> ir.Model:
    model = export(name, batch)
    steps = [*registry.room_default("clean"), *registry.room_default("fuse"), *(["cast.fp16"] if half else [])]
    for step in steps:
        with tempfile.TemporaryDirectory() as scratch:
            context = PassContext(target=target, run=run, calibration=x, scratch=scratch)
            registry.find(step)().apply(model, context)
    return model


def by_tool(plain: Path, made: Path, x: Batches, *, reduce_range: bool) -> None:
    """ONNX Runtime's static quantization, weights per channel, on the same data.

    `reduce_range` is its weights in seven bits, meant for processors without VNNI.
    """
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(x.batches)

        def get_next(self) -> Mapping[str, Any] | None:
            return next(self.left, None)

    ready = made.with_name("ready.onnx")
    quant_pre_process(str(plain), str(ready))
    quantize_static(str(ready), str(made), Reader(), per_channel=True, reduce_range=reduce_range)


def measure(
    name: str, engine: Engine, target: Target, form: str, batch: int, rounds: int, folder: Path
) -> dict[str, dict[str, Any]]:
    """Each model's median milliseconds, ratio to floating point, relative error and bytes."""
    side = NETS[name][1]
    feeds = {"x": np.random.default_rng(7).normal(size=(batch, 3, side, side)).astype(np.float32)}
    paths: dict[str, Path] = {}
    for number, (what, model) in enumerate(models(name, target, form, batch)):
        paths[what] = folder / f"{number}.onnx"
        save(model, paths[what])
    if target.dialect == "onnxruntime":
        plain, x = next(iter(paths.values())), normal((batch, 3, side, side), batches=2)
        for what, reduced in ((TOOL, False), (TOOL_REDUCED, True)):
            paths[what] = folder / f"tool-{reduced}.onnx"
            by_tool(plain, paths[what], x, reduce_range=reduced)
    found: dict[str, dict[str, Any]] = {}
    calls = {}
    with ExitStack() as open_ones:
        exact = None
        for what, path in paths.items():
            into = folder / f"{path.stem}-built"
            into.mkdir()
            built = engine.build(BuildRequest(path, into), lambda what, done, total: None)
            session = open_ones.enter_context(engine.open(built.path))
            y = session.run(feeds)["y"].astype(np.float32)
            exact = y if exact is None else exact
            error = float(np.linalg.norm(y - exact) / np.linalg.norm(exact))
            found[what] = {"error": error if np.isfinite(error) else None, "bytes": built.size_bytes}
            if "counts" in built.details:
                found[what]["counts"] = built.details["counts"]
            calls[what] = session.prepare(feeds)
        times: dict[str, list[float]] = {what: [] for what in calls}
        for turn in range(rounds + 1):
            for what, call in calls.items():
                call()
                begin = time.perf_counter()
                for _ in range(3):
                    call()
                if turn:
                    times[what].append((time.perf_counter() - begin) / 3 * 1e3)
    base = times[next(iter(times))]
    for what, held in times.items():
        found[what]["ms"] = statistics.median(held)
        found[what]["ratio"] = statistics.median(a / b for a, b in zip(held, base, strict=True))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["onnxruntime", "tensorrt"], default="onnxruntime")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--only", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", action="store_true", help="write docs/placement.md and measure nothing")
    given = parser.parse_args(arguments)
    if given.page:
        placement_page.write()
        return
    target = loading.load(given.target, given.engine)
    form = "int8" if given.engine == "onnxruntime" else "fp8"
    engine = engines.create({"kind": given.engine})
    facts: dict[str, Any] = {
        "date": datetime.date.today().isoformat(), "engine": given.engine, "form": form, "batch": given.batch,
        "rounds": given.rounds, "device": _device(given.engine), "versions": _versions(given.engine),
        "rules": _rules(target, form), "nets": {},
    }  # fmt: skip
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            facts["nets"][name] = measure(name, engine, target, form, given.batch, given.rounds, Path(folder))
        for what, row in facts["nets"][name].items():
            print(f"{name:10} {what:45} {row['ms']:8.3f} ms  {row['ratio']:.2f}  error {row['error']}")
        if given.out is not None:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(facts, indent=2) + "\n")


def _device(engine: str) -> Any:
    return torch.cuda.get_device_name(0) if engine == "tensorrt" else processor.describe()


def _rules(target: Target, form: str) -> dict[str, Any]:
    """What the target says of the format."""
    rules = target.quantize
    return {
        "ops": rules.ops.get(form, ()),
        "one scale in FP16": rules.one_scale_in_fp16.get(form, ()),
        "residual_adds": form in rules.residual_adds,
        "convolution_results": form in rules.convolution_results,
        "repeat_before": rules.repeat_before.get(form, ()),
        "keep_first": rules.keep_first.get(form, ()),
        "keep_last": rules.keep_last.get(form, ()),
    }


def _versions(engine: str) -> dict[str, str]:
    versions = {"torch": torch.__version__, "onnxruntime": importlib.metadata.version("onnxruntime")}
    if engine == "tensorrt":
        from optimize.engines.tensorrt_library import load

        versions["tensorrt"] = str(load().version)
    return versions


if __name__ == "__main__":
    main()
