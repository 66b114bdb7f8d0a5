"""Outlier channels between two products, computed several times over and shared out.

Before: y = MatMul(Gelu(MatMul(x, a) + b), c)
After:  the same with column k of a and b n times, and row k of c n times, divided by n

A quantizer's steps follow the largest magnitude: one channel that is 75 times as hard as every other, as in
MiniLM's feed-forward layers, makes them coarse for all. SmoothQuant can only trade its size between activation and
weight; split in n, both together are n times smaller, and the result stays, up to rounding. Put it before
`quantize.int8: {activations: static, smooth: 0.6}`, whose smoothing then has less to move.

How hard a channel is: largest |activation| on the calibration data × largest |weight| of its row. The hardest are
split one after the other until `columns` more columns are there. For 1 % more
multiplications MiniLM's INT8 embeddings have an SQNR of 27.3 dB instead of 25.6 (8-bit weights, 256 sentences;
`python -m tests.benchmarks.quantization_table --only GPTQ`).
Source: Zhao et al., "Improving Neural Network Quantization without Retraining using Outlier Channel Splitting"
(2019).

Leaves alone, by name: products whose input does not come, by elementwise operators that nothing else reads, from
products with constant weights; inputs without a range; channels that are alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pydantic

from passes import layers as weighted
from passes import numerics
from passes.base import Pass, PassContext, PassResult, Pattern, Skip
from passes.calibration import Method, collect
from passes.layers import Layer
from passes.qdq import Editor, drop_unused_constants
from passes.surgery._elementwise import Region, region_of
from passes.weights import Constant

Array = np.ndarray[Any, np.dtype[Any]]

PRODUCTS = ("MatMul", "Gemm")


@dataclasses.dataclass(frozen=True)
class Split:
    """How a value's channels are shared out.

    Attributes:
        order: (channels after,) the channel before.
        parts: (channels after,) in how many the channel before is split.
        before: Hardness of the hardest channel; see the module's docstring.
        after: The same afterwards.
    """

    order: Array
    parts: Array
    before: float
    after: float

    def columns(self, weight: Array) -> Array:
        """(in, channels) of a product that makes the value → (in, channels after)."""
        made: Array = weight[:, self.order]
        return made

    def rows(self, weight: Array) -> Array:
        """(channels, out) of a product that reads the value → (channels after, out)."""
        made: Array = (weight[self.order].astype(np.float32) / self.parts[:, None]).astype(weight.dtype)
        return made


class SplitOutliers(Pass):
    """Split channels that are much larger than the others, where doubling them is free."""

    version: ClassVar[int] = 1

    columns: int = pydantic.Field(
        default=32,
        ge=1,
        le=1024,
        description="Columns added to a product; a multiple of 16 keeps sizes that processors like.",
    )
    gain: float = pydantic.Field(
        default=2.0,
        ge=1,
        description="Products whose hardest channel would not become easier by this factor are left alone.",
    )

    def requires_calibration(self) -> bool:
        """The channels' sizes come from data."""
        return True

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Split every input of a product that has an outlier.

        Raises:
            PassFailed: When there is no usable calibration data.
        """
        found, _ = weighted.find(model, PRODUCTS)
        regions, skips = _regions(found, model.graph)
        names = [str(region.value.name) for region in regions]
        if not names:
            return PassResult(patterns=(Pattern("outlier", 0),), skips=tuple(skips))
        ranges = collect(
            model, names, context, Method("minmax"), numerics.INT8,
            symmetric=True, channel_axes=dict.fromkeys(names, -1),
        )  # fmt: skip
        editor = Editor(model)
        weights = _Weights(editor)
        changed: list[str] = []
        done: list[Split] = []
        for number, (name, region) in enumerate(zip(names, regions, strict=True)):
            context.progress("surgery.split_outliers", number, len(regions))
            known = ranges.of.get(name)
            if known is None:
                split: Split | str = f"its input '{name}' {ranges.unusable[name]}"
            else:
                assert known.channel_amax is not None
                split = self._split(region, known.channel_amax)
            if isinstance(split, str):
                skips += [weighted.skip(layer.node, split) for layer in region.readers]
                continue
            _write(editor, weights, region, split)
            done.append(split)
            changed += [layer.name for layer in region.readers]
        figures: dict[str, float | int | str] = {}
        if done:
            figures["columns added"] = self.columns * len(done)
            figures["hardest channel before"] = max(split.before for split in done)
            figures["hardest channel after"] = max(split.after for split in done)
        return PassResult(
            patterns=(Pattern("outlier", len(done)),),
            skips=tuple(skips),
            changed=tuple(changed),
            figures=figures,
            notes=ranges.notes,
        )

    def _split(self, region: Region, amax: Array) -> Split | str:
        size = np.zeros(len(amax))
        for layer in region.readers:
            weight = np.abs(np.asarray(layer.weight.numpy(), np.float32))
            size = np.maximum(size, weight.max(axis=1))
        hardness = amax.astype(np.float64) * size
        if not np.isfinite(hardness).all():
            return "its weight or its input is not finite"
        parts = shares(hardness, self.columns)
        before, after = float(hardness.max(initial=0)), float((hardness / parts).max(initial=0))
        if before < self.gain * after or not before:
            return f"no channel stands out: split, the hardest would be {_factor(before, after)} times easier"
        order = np.repeat(np.arange(len(parts)), parts)
        return Split(order, parts[order], before, after)


def _regions(found: Sequence[Layer], graph: ir.Graph) -> tuple[list[Region], list[Skip]]:
    """One region per value that products of the main graph read, where there is one; else why not."""
    readers: dict[ir.Value, list[Layer]] = {}
    makers: dict[ir.Value, Layer] = {}
    skips: list[Skip] = []
    for layer in found:
        if layer.graph is graph:
            readers.setdefault(layer.activation, []).append(layer)
            makers[layer.output] = layer
        else:
            skips.append(weighted.skip(layer.node, "lies in a sub-graph, where calibration does not reach"))
    regions: list[Region] = []
    for value, layers in readers.items():
        region = region_of(value, layers, makers)
        if isinstance(region, str):
            skips += [weighted.skip(layer.node, region) for layer in layers]
        else:
            regions.append(region)
    return regions, skips


def shares(hardness: Array, columns: int) -> Array:
    """(channels,) parts that each channel is split in, `columns` more than channels in all, the hardest first."""
    parts: Array = np.ones(len(hardness), np.int64)
    for _ in range(columns):
        parts[np.argmax(hardness / parts)] += 1
    return parts


def _factor(before: float, after: float) -> str:
    return f"{before / after:.1f}" if after else "1.0"


class _Weights:
    """Changes products' weights; one between two values is changed for both."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._now: dict[ir.Node, Callable[[], Array]] = {}

    def replace(self, layer: Layer, axis: int, size: int, change: Callable[[Array], Array]) -> ir.Value:
        """Give a product a changed copy of its (in, out) weight, made when it is read; gives what it had.

        Args:
            layer: The product.
            axis: Which of (in, out) gets another size.
            size: That size.
            change: The weight as it is now to the weight as it shall be.
        """
        held = layer.node.inputs[1]
        assert held is not None
        before = self._now.get(layer.node)
        shape = list(layer.weight.shape if before is None or held.shape is None else held.shape.numpy())
        shape[axis] = size
        now = before or layer.weight.numpy

        def after() -> Array:
            return np.ascontiguousarray(change(now()))

        self._now[layer.node] = after
        lazy = ir.LazyTensor(lambda: ir.tensor(after()), dtype=layer.weight.dtype, shape=ir.Shape(shape))
        layer.node.replace_input_with(1, self._editor.tensor(f"{layer.weight.name}_split", lazy))
        if layer.transposed:
            layer.node.attributes["transB"] = ir.AttrInt64("transB", 0)
        return held


def _write(editor: Editor, weights: _Weights, region: Region, split: Split) -> None:
    spent: list[ir.Value] = []
    size = len(split.order)
    for layer in region.makers:
        spent.append(weights.replace(layer, 1, size, split.columns))
        if layer.bias is not None:
            spent.append(_replace_bias(editor, layer, layer.bias, split.order))
    for layer in region.readers:
        spent.append(weights.replace(layer, 0, size, split.rows))
    for value in region.values:
        if value.shape is not None and value.shape.rank():
            value.shape = ir.Shape([*list(value.shape)[:-1], size])
    drop_unused_constants(spent)


def _replace_bias(editor: Editor, layer: Layer, bias: Constant, order: Array) -> ir.Value:
    """Give a product a bias for its new columns; gives what it had."""
    node, position = layer.node, 2
    if layer.bias_node is not None:
        node = layer.bias_node
        position = 1 if node.inputs[0] is layer.node.outputs[0] else 0
    held = node.inputs[position]
    assert held is not None
    # Its rank is kept: it may give the result more axes.
    rank = 1 if held.shape is None else held.shape.rank()
    numbers = bias.numpy()[order].reshape([1] * (rank - 1) + [-1])
    node.replace_input_with(position, editor.tensor(f"{bias.name}_split", ir.tensor(numbers)))
    return held
