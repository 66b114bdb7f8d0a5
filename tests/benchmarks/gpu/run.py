"""Benchmark on one NVIDIA GPU: PyTorch, torch.compile, TensorRT for RTX as exported, and ours, in turns.

    python tests/benchmarks/gpu/run.py --output results [--cases encoder]

Needs torch with CUDA, a TensorRT (any flavour) on PYTHONPATH and this repository's folder on PYTHONPATH.
Prints a table per case and writes results/benchmark.json after each, so that a run cut short keeps its cases.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jobs
import minilm
import numpy as np
import torch
import variants
from cases import CASES, Case
from table import COMPILED, best, table
from timing import Contender, interleaved, summary
from torch import Tensor, nn

from optimize.engines.tensorrt import TensorRTEngine
from optimize.engines.tensorrt_options import TensorRTOptions
from optimize.errors import OptimizeError
from optimize.targets import loading

EAGER = "torch eager FP32"
PLAIN = (variants.PLAIN, variants.PLAIN_HERE)


def main() -> None:
    """Parse the command line, run the cases, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    names = [*CASES, minilm.NAME]
    parser.add_argument("--cases", nargs="+", default=names, choices=names)
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="rows to build, as the table spells them")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="h200")
    parser.add_argument("--seconds", type=float, default=200.0, help="limit on building a variant")
    parser.add_argument("--jobs", type=int, default=6, help="variants built at the same time")
    parser.add_argument("--max-autotune", action="store_true", help="one more contender; minutes to compile")
    options = parser.parse_args()
    known = {variant.name for name in options.cases if name in CASES for variant in (*PLAIN, *CASES[name].ours)}
    if not known.issuperset(options.variants or ()):
        parser.error(f"--variants: expected some of: {'; '.join(sorted(known))}")
    options.output.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"environment": environment(), "rounds": options.rounds, "cases": {}}
    for name in options.cases:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
            if name == minilm.NAME:
                facts["cases"][name] = minilm.run(Path(scratch), seconds=3 * options.seconds)
            else:
                facts["cases"][name] = run_case(CASES[name], options, Path(scratch))
        facts["cases"][name]["seconds"] = time.monotonic() - started
        (options.output / "benchmark.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False))
        print(f"\n{table(facts['cases'][name])}", flush=True)
        torch.cuda.empty_cache()


def environment() -> dict[str, Any]:
    """What the figures were measured with."""
    from optimize.engines import tensorrt_device, tensorrt_library

    return {
        "device": tensorrt_device.require().model_dump(),
        "torch": torch.__version__,
        "tensorrt": tensorrt_library.load().title,
    }


def run_case(case: Case, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Everything about one case: builds, errors, times."""
    module, x = case.make(options.seed)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # Rounds the eager contender's convolutions.
        reference = module(x)
    built = build_variants(case, module, x, reference, options, scratch)
    with contextlib.ExitStack() as stack:
        contenders = torch_contenders(case, module, x, reference, options, built)
        for variant in (*PLAIN, *case.ours):
            facts = built.get(variant.name, {"failed": "left out"})
            if "failed" in facts:
                continue
            try:
                contenders.append(stack.enter_context(opened(variant, facts, x)))
            except (OptimizeError, RuntimeError) as error:
                facts["failed"] = f"cannot be opened for timing: {error}"
                print(f"{case.name}: {variant.name}: {facts['failed']}", flush=True)
        samples = interleaved(contenders, rounds=options.rounds)
    for contender, times in samples.items():
        built[contender] |= {"samples_ms": times, **summary(times)}
    rates = {name: facts["median_ms"] for name, facts in built.items() if "median_ms" in facts}
    for name, median in rates.items():
        built[name]["over_compile"] = median / rates[COMPILED]
        built[name]["speedup_over_fp32_eager"] = rates[EAGER] / median
    result = {
        "title": case.title, "goal_over_compile": case.goal, "error_limit": case.error_limit, "contenders": built,
    }  # fmt: skip
    return result | {"best_within_error": best(result)}


def build_variants(
    case: Case, module: nn.Module, x: Tensor, reference: Tensor, options: argparse.Namespace, scratch: Path
) -> dict[str, dict[str, Any]]:
    """Export once per opset and build every variant at the same time, in processes of their own."""
    half, sample = copy.deepcopy(module).half().cpu(), x.half().cpu()
    feeds = scratch / "feeds.npz"
    np.savez(feeds, x=sample.numpy())
    models: dict[tuple[Any, ...], Path] = {}
    target = loading.load(options.target, "tensorrt").model_dump(mode="json")
    built: dict[str, dict[str, Any]] = {}
    running: dict[str, tuple[Path, Future[dict[str, Any]]]] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for index, variant in enumerate((*PLAIN, *case.ours)):
            if options.variants and variant.name not in options.variants:
                continue
            spelling = (variant.opset, variant.style)
            if spelling not in models:
                folder = scratch / f"export-{len(models)}"
                folder.mkdir()
                if variant.style is not None:
                    half.style = variant.style
                jobs.export(half, sample, folder / "model.onnx", variant.opset)
                models[spelling] = folder / "model.onnx"
            folder = scratch / f"variant-{index}"
            building = pool.submit(jobs.build, variant, models[spelling], feeds, folder, target, options.seconds)
            running[variant.name] = (folder, building)
        for name, (folder, future) in running.items():
            facts = built[name] = future.result()
            if "failed" not in facts:
                facts["relative_error"] = jobs.relative_error(folder, reference)
            print(f"{case.name}: {name}: {facts.get('failed') or facts['summary']}", flush=True)
    return built


def torch_contenders(
    case: Case,
    module: nn.Module,
    x: Tensor,
    reference: Tensor,
    options: argparse.Namespace,
    built: dict[str, dict[str, Any]],
) -> list[Contender]:
    """PyTorch's own ways, with their errors noted in `built`."""
    stream = torch.cuda.current_stream()
    half, sample = copy.deepcopy(module).half(), x.half()
    found: dict[str, Callable[[], Any]] = {EAGER: lambda: module(x), "torch eager FP16": lambda: half(sample)}
    fast, image = half, sample
    if case.channels_last:
        fast = copy.deepcopy(half).to(memory_format=torch.channels_last)
        image = sample.to(memory_format=torch.channels_last)
        found["torch eager FP16 NHWC"] = lambda: fast(image)
    modes = {COMPILED: "reduce-overhead"}
    if options.max_autotune:
        modes["torch.compile FP16 (max-autotune)"] = "max-autotune"
    for name, mode in modes.items():
        compiled = torch.compile(fast, mode=mode)

        def step(compiled: Any = compiled) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(image)

        found[name] = step
    contenders = []
    for name, call in found.items():
        for _ in range(3):  # Compiling and capturing happen in the first runs.
            y = call()
        error = (y.float() - reference).norm() / reference.norm()
        built[name] = {"relative_error": float(error)}
        contenders.append(Contender(name, call, stream))
    return contenders


@contextlib.contextmanager
def opened(variant: variants.Variant, facts: dict[str, Any], x: Tensor) -> Any:
    """A built variant, ready to be timed as a CUDA graph."""
    engine = TensorRTEngine(TensorRTOptions.model_validate(variant.options))
    with engine.open(Path(facts["plan"])) as session:
        lane = session.lane
        lane.bind({"x": x.half().cpu().numpy()})
        lane.upload()
        replay = lane.replayed(cuda_graph=True)
        yield Contender(variant.name, replay, torch.cuda.ExternalStream(lane.stream.handle))


if __name__ == "__main__":
    main()
