"""Cleans and fuses graphs of many nodes: `python -m tests.reliability.nodes --nodes 1000 10000 100000`.

Each size runs in a process of its own: reading and checking the file as a source does, then every pass of the
rooms `clean` and `fuse`. Processor seconds per thousand nodes must not grow with the graph; memory is the peak
of the process's anonymous memory. Writes `docs/reliability/nodes.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

RESULT = Path("docs/reliability/nodes.json")
WIDTH = 8
LAYER_NODES = 16


def generate(path: Path, nodes: int) -> None:
    """Write a chain of small feed-forward layers as exporters spell them: MatMul, Add, erf GELU, normalization."""
    from passes import saving

    rng = np.random.default_rng(0)
    made: list[ir.Node] = []
    held: list[ir.Value] = []

    def constant(array: Any) -> ir.Value:
        name = f"c{len(held)}"
        tensor = ir.tensor(np.asarray(array, np.float32), name=name)
        held.append(ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape))
        return held[-1]

    def add(op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op_type, list(inputs), attributes, name=f"n{len(made)}")
        node.outputs[0].name = f"v{len(made)}"
        made.append(node)
        return node.outputs[0]

    half, one, root, two, tiny = (constant(value) for value in (0.5, 1.0, np.sqrt(2.0), 2.0, 1e-5))
    axes = ir.Value(
        name="axes", const_value=ir.tensor(np.array([-1]), name="axes"), type=ir.TensorType(ir.DataType.INT64)
    )
    axes.shape = ir.Shape((1,))
    x = ir.val("x", ir.DataType.FLOAT, ["rows", WIDTH])
    value = x
    for _ in range(max(1, nodes // LAYER_NODES)):
        product = add("MatMul", value, constant(rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)))
        biased = add("Add", product, constant(rng.normal(size=WIDTH)))
        error = add("Add", add("Erf", add("Div", biased, root)), one)
        gelu = add("Mul", add("Mul", biased, error), half)
        skipped = add("Add", add("Identity", gelu), value)
        centred = add("Sub", skipped, add("ReduceMean", skipped, axes))
        variance = add("ReduceMean", add("Pow", centred, two), axes)
        value = add("Div", centred, add("Sqrt", add("Add", variance, tiny)))
    value.name, value.type, value.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [value], nodes=made, initializers=[*held, axes], opset_imports={"": 20}, name="chain")
    saving.save(ir.Model(graph, ir_version=10), path)


def measure(path: Path) -> dict[str, Any]:
    """Figures of one graph, in this process."""
    from optimize.pipeline import memory
    from optimize.sources.onnx_file import OnnxSource
    from optimize.targets import loading
    from passes import registry
    from passes.base import PassContext

    context = PassContext(target=loading.load("cpu", "onnxruntime"))
    found: dict[str, float] = {}
    with memory.AnonymousPeak() as peak:
        started = time.process_time()
        model = OnnxSource(path=str(path)).capture(lambda *_: None).model
        found["capture"] = time.process_time() - started
        nodes = len(model.graph)
        rewrites = 0
        for room in ("clean", "fuse"):
            for name in registry.room_default(room):
                started = time.process_time()
                rewrites += registry.find(name)().apply(model, context).rewrites
                found[name] = time.process_time() - started
    per_thousand = {name: round(seconds * 1e6 / nodes, 1) for name, seconds in found.items()}
    slowest = sorted(per_thousand, key=lambda name: -per_thousand[name])[:5]
    return {
        "nodes": nodes,
        "nodes_after": len(model.graph),
        "rewrites": rewrites,
        "capture_s": round(found["capture"], 2),
        "clean_and_fuse_s": round(sum(found.values()) - found["capture"], 2),
        "ms_per_1000_nodes": round(sum(per_thousand.values())),
        "peak_anonymous_mb": round((peak.peak_bytes or 0) / 1e6),
        "slowest_ms_per_1000_nodes": {name: per_thousand[name] for name in slowest},
    }


def main() -> None:
    """Generate, measure, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        sys.stdout.write(json.dumps(measure(given.one)))
        return
    facts = []
    with tempfile.TemporaryDirectory() as scratch:
        for nodes in given.nodes:
            path = Path(scratch) / "model.onnx"
            generate(path, nodes)
            words = [sys.executable, "-m", "tests.reliability.nodes", "--one", str(path)]
            result = subprocess.run(words, capture_output=True, text=True, check=True)
            facts.append(json.loads(result.stdout))
            sys.stderr.write(f"{facts[-1]}\n")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
