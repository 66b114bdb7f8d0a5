"""Write docs/fusion-coverage.md: python -m tests.benchmarks.fusion_table [--cache FOLDER]

Exports every architecture of the zoo in both attention implementations, fuses it for ONNX Runtime's CPU and for
TensorRT, and compares what was found with what the architecture's source says. Then fuses every model of the ONNX
standard's own test data and compares its outputs.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
import torch
import transformers

from passes import trial
from passes.target import Target
from passes.verify import TOLERANCES
from tests.support import zoo
from tests.support.coverage import Coverage, cover
from tests.support.runner import CPU, TENSORRT, context

PAGE = Path(__file__).parents[2] / "docs" / "fusion-coverage.md"
EVERYWHERE = TENSORRT.model_copy(update={"attention": ("fp32", "fp16", "bf16")})
"""The TensorRT dialect without its precision limit, so that float32 exports show what the matcher finds."""

ONLY_ONNXRUNTIME = ("skip_layer_norm", "bias_gelu", "gelu_sigmoid")
"""Patterns that TensorRT fuses by itself from the plain form; the passes leave them."""

ONLY_TENSORRT = ("group_norm",)
"""Patterns that ONNX Runtime's CPU has no kernel for; the passes leave them."""

END_TO_END = 2.0**-10
"""Largest error of a fused float32 model: a single rewrite's tolerance (2**-14) times 2**4 for a chain of them."""

HEAD = (
    "| model | attention | pattern found/expected | verdict | also rewritten | nodes | max error | near misses |\n"
    "|---|---|---|---|---|---|---|---|"
)


def load(name: str, attention: str, cache: Path | None) -> tuple[ir.Model, dict[str, int]] | str:
    """(model, expected patterns), exported or from the cache; the reason why it cannot be exported."""
    path = cache / f"{name}.{attention}.onnx" if cache else None
    if path and path.exists():
        return ir.load(path), zoo.ZOO[name](attention).expected
    try:
        model, example = zoo.export(name, attention)
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        return f"torch {torch.__version__} cannot export it ({type(error).__name__})"
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        ir.save(model, path)
    return model, example.expected


def row(name: str, attention: str, target: Target, cache: Path | None) -> str:
    """The table row of one model on one target."""
    found = load(name, attention, cache)
    if isinstance(found, str):
        return f"| {name} | {attention} | | {found} | | | | |"
    model, expected = found
    result = cover(model, ir.from_proto(ir.to_proto(model)), context(target))
    wanted = {
        pattern: count
        for pattern, count in sorted(expected.items())
        if pattern not in (ONLY_TENSORRT if target.dialect == "onnxruntime" else ONLY_ONNXRUNTIME)
    }
    marks = ", ".join(f"{key} {result.total(key)}/{count}" for key, count in wanted.items())
    faults = [pattern for pattern, count in wanted.items() if result.total(pattern) != count]
    extra = {key: count for key, count in sorted(result.found.items()) if count and key not in wanted}
    more = ", ".join(f"{key} {count}" for key, count in extra.items())
    verdict = "all found" if not faults else "**differs: " + ", ".join(faults) + "**"
    nodes = f"{result.nodes_before} → {result.nodes_after}"
    cells = (name, attention, marks, verdict, more, nodes, f"{result.error:.1e}", reasons(result))
    return f"| {' | '.join(cells)} |"


def reasons(result: Coverage) -> str:
    """The near misses, counted."""
    count = Counter(f"{pattern}: {miss.reason}" for pattern, miss in result.misses)
    return "; ".join(f"{number} × {reason}" for reason, number in count.most_common(3))


def standard_models() -> Iterator[tuple[str, Path]]:
    """The model graphs inside the ONNX package's own test data."""
    root = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for path in sorted(root.glob("*/*/model.onnx")):
        yield f"{path.parts[-3]}/{path.parts[-2]}", path


def standard(target: Target) -> tuple[Counter[str], list[str]]:
    """(how the standard's models fared, those that changed their outputs)."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for name, path in standard_models():
        fate = fuse_one(path, target)
        counts[fate] += 1
        if fate == "outputs differ" or fate.startswith("broken"):
            wrong.append(name)
    return counts, wrong


def fuse_one(path: Path, target: Target) -> str:
    """What became of one model: not runnable by itself, left alone, fused with equal outputs, or not equal."""
    try:
        reference = ir.load(path)
        feeds = next(trial.feeds(reference, context(target).rng()))
        context(target).run(reference, feeds)  # type: ignore[misc]
    except Exception:  # the standard holds operators, types and sizes that ONNX Runtime or trial inputs lack
        return "not runnable before"
    try:
        result = cover(ir.load(path), reference, context(target))
    except Exception as error:  # whatever breaks, the page names the model
        return f"broken ({type(error).__name__})"
    if not any(result.found.values()):
        return "left alone"
    halves = any(value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for value in reference.graph.outputs)
    limit = TOLERANCES["float16"] if halves else END_TO_END
    return "fused, outputs equal" if result.error < limit else "outputs differ"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, help="folder that keeps the exported models between runs")
    cache = parser.parse_args().cache
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    lines = [
        "# What the fusion passes find",
        "",
        "Written by `python -m tests.benchmarks.fusion_table`; not edited by hand. Architectures are built from",
        "their configurations with random weights and small dimensions, exported with dynamic axes, and fused by",
        "the recipe item `fuse`. Found counts rewrites and operators that the exporter had written already. The",
        "error is the largest difference of any output to the unfused graph, relative to that output's largest",
        "value, on random inputs with padded and fully masked rows, both run by ONNX Runtime without graph",
        "optimisation.",
        "",
        f"torch {torch.__version__}, transformers {transformers.__version__}, onnx {onnx.__version__},"
        f" onnxruntime {onnxruntime.__version__}.",
    ]
    for title, target in (("ONNX Runtime on a CPU", CPU), ("TensorRT", EVERYWHERE)):
        lines += ["", f"## {title}", "", HEAD]
        for name in zoo.ZOO:
            for attention in ("sdpa", "eager"):
                if attention == "eager" and name in zoo.WITHOUT_ATTENTION:
                    continue
                lines.append(row(name, attention, target, cache))
                print(lines[-1], flush=True)
        PAGE.write_text("\n".join(lines) + "\n")
    lines += ["", "## The ONNX standard's own models", ""]
    for title, target in (("ONNX Runtime on a CPU", CPU), ("TensorRT", EVERYWHERE)):
        counts, wrong = standard(target)
        lines.append(
            f"- {title}: " + ", ".join(f"{number} {fate}" for fate, number in sorted(counts.items())) + "."
        )
        lines += [f"  - differs: {name}" for name in wrong]
        print(lines[-1], flush=True)
    lines += [
        "",
        "TensorRT's dialect is listed without its precision limit: the fused attention that the target has in FP16",
        "and BF16 only is found in float32 exports too here, to show the matching; a recipe casts first.",
        "",
    ]
    PAGE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
