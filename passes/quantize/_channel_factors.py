"""Factors for input channels: AWQ's by search, SmoothQuant's by formula; and weights multiplied by them.

AWQ (Lin et al., "Activation-aware Weight Quantization", 2023): s = rms(x)**a, the exponent a being the one of a
grid under which the quantized weight's output errs least on the calibration data.
SmoothQuant (Xiao et al. 2022): s = amax(x)**a / amax(w)**(1 - a), a given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from passes import numerics
from passes.base import PassContext
from passes.calibration import Method, collect
from passes.qdq import Editor
from passes.quantize._lazy import reading
from passes.quantize._moments import input_moments
from passes.quantize._prescale import divide
from passes.quantize._tiles import to_float32
from passes.quantize._weights import Weight

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

EXPONENTS = tuple(step / 10 for step in range(10))
"""AWQ's grid; 0 leaves the channels as they are."""

Restore = Callable[[Float32], Float32]
"""What a `(K, N)` weight becomes by being quantized and read back."""


def awq_factors(
    model: ir.Model, groups: Mapping[str, Sequence[Weight]], context: PassContext, what: str, restore: Restore
) -> dict[str, Float32]:
    """(K,) factors per input name, for inputs where an exponent above 0 gains."""
    sizes = {name: held[0].summed for name, held in groups.items()}
    found: dict[str, Float32] = {}
    for moments in input_moments(model, sizes, context, what) if sizes else ():
        for name, own in moments.items():
            factors = least_error_factors([matrix(weight) for weight in groups[name]], own, restore)
            if factors is not None:
                found[name] = factors
    return found


def least_error_factors(weights: Sequence[Float32], own: Float64, restore: Restore) -> Float32 | None:
    """The grid's best factors for `(K, N)` weights on an input with the second moments `own`; None for none."""
    size = np.sqrt(np.diag(own))
    size = np.where(size > 0, size, 1)
    best, least = None, np.inf
    for exponent in EXPONENTS:
        factors = (size**exponent / np.exp(np.log(size**exponent).mean())).astype(np.float32)
        error = 0.0
        for weight in weights:
            change = (restore(weight * factors[:, None]) / factors[:, None] - weight).astype(np.float64)
            error += float(np.sum(change * (own @ change)))
        if error < least:
            best, least = (factors if exponent else None), error
    return best


def smooth_factors(weights: Sequence[Float32], amax: Array, exponent: float) -> Float32:
    """(K,) factors with geometric mean 1; 1 for channels that never activate or have no weight."""
    largest = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0).astype(np.float64)
    usable = (amax > 0) & (largest > 0)
    factors = np.ones(len(largest))
    factors[usable] = amax[usable].astype(np.float64) ** exponent / largest[usable] ** (1 - exponent)
    if usable.any():
        factors[usable] /= np.exp(np.log(factors[usable]).mean())
    return factors.astype(np.float32)


def by_input(model: ir.Model, weights: Sequence[Weight]) -> dict[str, list[Weight]]:
    """The weights whose input channels can be scaled, by the name of the one input that all their uses read."""
    groups: dict[str, list[Weight]] = {}
    for weight in weights:
        sources = {use.node.inputs[0] for use in weight.uses}
        source = next(iter(sources))
        inside = all(use.node.graph is model.graph and use.node.op_type != "Conv" for use in weight.uses)
        straight = not any(use.node.attributes.get_int("transA", 0) for use in weight.uses)
        single = len(sources) == 1 and source is not None and len(weight.shape) == 2
        if inside and straight and single and source is not None and weight.value.is_initializer():
            groups.setdefault(str(source.name), []).append(weight)
    return groups


def apply_factors(
    model: ir.Model, groups: Mapping[str, Sequence[Weight]], factors: Mapping[str, Float32]
) -> dict[str, int]:
    """Multiply weights and divide what meets them; gives how many divisions were folded, and how many not."""
    editor = Editor(model)
    counts = {"folded": 0, "multiplied": 0}
    for name, held in groups.items():
        if name not in factors:
            continue
        source = held[0].uses[0].node.inputs[0]
        assert source is not None
        for weight in held:
            # What the value holds, not what was found: a fold may have scaled its columns since.
            for use in weight.uses:
                operand = (use.through or use.node).inputs[0 if use.through else 1]
                assert operand is not None
                _multiply(operand, weight.axis, factors[name])
                break
        nodes = [use.node for weight in held for use in weight.uses]
        folded = divide(editor, source, nodes, factors[name])
        counts["folded" if folded else "multiplied"] += 1
    return counts


def _multiply(value: ir.Value, axis: int, factors: Float32) -> None:
    tensor = value.const_value
    assert tensor is not None
    along = factors[:, None] if axis == 0 else factors[None, :]

    def evaluate() -> ir.TensorProtocol:
        with reading(tensor) as stored:
            scaled = (to_float32(stored) * along).astype(stored.dtype)
            del stored  # or the file stays mapped
        return ir.tensor(scaled)

    value.const_value = ir.LazyTensor(
        evaluate, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name
    )


def matrix(weight: Weight) -> Float32:
    """The weight as `(K, N)` float32, a copy."""
    with reading(weight.tensor) as stored:
        values = np.array(stored if weight.axis == 0 else stored.T, np.float32)
        del stored  # or the file stays mapped
    return values


def smooth(
    model: ir.Model, weights: Sequence[Weight], exponent: float, context: PassContext, grid: numerics.Format
) -> None:
    """Turn `model` into an equivalent one whose products' inputs have fewer outlier channels (SmoothQuant).

    Args:
        model: Changed.
        weights: Of the products.
        exponent: How much moves into the weights, 0 to 1.
        context: Calibration data.
        grid: What the inputs will be stored in.
    """
    groups = by_input(model, weights)
    if not groups:
        return
    found = collect(
        model, list(groups), context, Method("minmax"), grid, symmetric=True, channel_axes=dict.fromkeys(groups, -1)
    )
    factors = {}
    for name, held in groups.items():
        amax = found.of[name].channel_amax if name in found.of else None
        if amax is not None:
            factors[name] = smooth_factors([matrix(weight) for weight in held], amax, exponent)
    apply_factors(model, groups, factors)
