"""Write docs/fusion-scaling.md: python -m tests.benchmarks.fusion_scaling

Time of every default fusion, with its numerical checks, on graphs of 1,000 to 100,000 nodes.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from passes import registry
from tests.support.runner import context

PAGE = Path(__file__).parents[2] / "docs" / "fusion-scaling.md"
SIZES = (1_000, 10_000, 50_000, 100_000)
WIDTH, HEADS = 8, 2


class Blocks:
    """A model of as many transformer layers, spelled out in single operators, as a number of nodes allows."""

    def __init__(self, nodes: int) -> None:
        shape = ir.Shape(["batch", "tokens", WIDTH])
        self.x = ir.Value(name="x", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []
        rng = np.random.default_rng(0)
        square = [self.weight(rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 8) for _ in range(6)]
        row = self.weight(np.linspace(0.5, 1.5, WIDTH, dtype=np.float32))
        small = {key: self.weight(np.float32(number)) for key, number in NUMBERS.items()}
        lists = {key: self.weight(np.array(numbers, np.int64)) for key, numbers in LISTS.items()}
        value = self.x
        while len(self.nodes) < nodes:
            value = self.layer(value, square, row, small, lists)
        value.shape, value.type = shape, ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            [self.x], [value], nodes=self.nodes, initializers=self.weights, opset_imports={"": 20}, name="blocks"
        )
        self.model = ir.Model(graph, ir_version=10)

    def weight(self, array: np.ndarray | np.generic) -> ir.Value:
        """Add an initializer."""
        tensor = ir.tensor(array, name=f"w{len(self.weights)}")
        value = ir.Value(
            name=tensor.name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype)
        )
        self.weights.append(value)
        return value

    def op(self, kind: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        """Add a node."""
        node = ir.node(kind, list(inputs), attributes=attributes, name=f"n{len(self.nodes)}")
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def layer(
        self,
        x: ir.Value,
        square: list[ir.Value],
        row: ir.Value,
        small: dict[str, ir.Value],
        lists: dict[str, ir.Value],
    ) -> ir.Value:
        """Self-attention with a NaN guard, then a perceptron, each with a residual and a spelled-out norm."""
        heads = []
        for weight in square[:3]:
            biased = self.op("Add", self.op("MatMul", x, weight), row)
            heads.append(self.op("Transpose", self.op("Reshape", biased, lists["split"]), perm=[0, 2, 1, 3]))
        turned = self.op("Transpose", heads[1], perm=[0, 1, 3, 2])
        weights = self.op("Softmax", self.op("Mul", self.op("MatMul", heads[0], turned), small["half"]))
        guarded = self.op("Where", self.op("IsNaN", weights), small["zero"], weights)
        mixed = self.op("Transpose", self.op("MatMul", guarded, heads[2]), perm=[0, 2, 1, 3])
        merged = self.op("Reshape", mixed, lists["merge"])
        x = self.norm(
            self.op("Add", x, self.op("Add", self.op("MatMul", merged, square[3]), row)), row, small, lists
        )
        inner = self.op("Add", self.op("MatMul", x, square[4]), row)
        error = self.op("Add", self.op("Erf", self.op("Mul", inner, small["inverse"])), small["one"])
        gelu = self.op("Mul", self.op("Mul", inner, error), small["half"])
        return self.norm(self.op("Add", x, self.op("MatMul", gelu, square[5])), row, small, lists)

    def norm(self, x: ir.Value, row: ir.Value, small: dict[str, ir.Value], lists: dict[str, ir.Value]) -> ir.Value:
        """Layer norm in single operators."""
        centred = self.op("Sub", x, self.op("ReduceMean", x, lists["last"]))
        mean = self.op("ReduceMean", self.op("Mul", centred, centred), lists["last"])
        root = self.op("Sqrt", self.op("Add", mean, small["epsilon"]))
        return self.op("Add", self.op("Mul", self.op("Div", centred, root), row), row)


NUMBERS = {"half": 0.5, "zero": 0.0, "one": 1.0, "inverse": 0.70710677, "epsilon": 1e-5}
LISTS = {"split": [0, 0, HEADS, WIDTH // HEADS], "merge": [0, 0, WIDTH], "last": [-1]}


def main() -> None:
    """Measure and write the page."""
    table: dict[str, dict[int, tuple[float, int]]] = {}
    nodes: dict[int, str] = {}
    for size in SIZES:
        model = Blocks(size).model
        before = len(model.graph)
        for name in registry.room_default("fuse"):
            started = time.process_time()
            result = registry.find(name)().apply(model, context())
            table.setdefault(name, {})[size] = (time.process_time() - started, result.rewrites)
            print(size, name, table[name][size], result.notes[:1], flush=True)
        nodes[size] = f"{before:,} → {len(model.graph):,}"
    total = {size: sum(row[size][0] for row in table.values()) for size in SIZES}
    lines = [
        "# How long the fusion passes take",
        "",
        "Written by `python -m tests.benchmarks.fusion_scaling`; not edited by hand. Layers of a transformer in",
        "single operators, repeated; CPU seconds per pass with its numerical checks, and what it rewrote.",
        "",
        "| pass | " + " | ".join(f"{size:,} nodes" for size in SIZES) + " |",
        "|---|" + "---|" * len(SIZES),
    ]
    for name, row in table.items():
        lines.append(f"| `{name}` | " + " | ".join(f"{s:.2f} s ({n:,})" for s, n in row.values()) + " |")
    lines.append("| all | " + " | ".join(f"{total[size]:.2f} s" for size in SIZES) + " |")
    lines.append("| per 1,000 nodes | " + " | ".join(f"{total[s] / s * 1000:.2f} s" for s in SIZES) + " |")
    lines.append("| nodes | " + " | ".join(nodes[size] for size in SIZES) + " |")
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
