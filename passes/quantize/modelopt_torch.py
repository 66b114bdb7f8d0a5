"""Quantizers as NVIDIA ModelOpt's torch-side configurations learned them, placed by module name.

Before: y = MatMul(x, w) + b
After:  y = MatMul(DequantizeLinear(QuantizeLinear(x * f, s)), DequantizeLinear(codes, scales)) + b

`s`, `scales` and `f` (SmoothQuant's and AWQ's factors) come from ModelOpt's quantizers on a copy of the source's
module; the graph is the plain module's. ONNX Runtime gets INT8 matrix layers in its integer operators instead.

Leaves alone, each named: what `skip` names, layers that ModelOpt left in floating point, quantizers of kinds that
standard ONNX cannot say, layers whose weight is not the module's any more, modules that no node comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
import pydantic

from passes import layers as weighted
from passes import lessons, names, numerics
from passes.base import Pass, PassContext, PassFailed, PassResult, Pattern, Skip
from passes.layers import Layer
from passes.lessons import LayerLesson
from passes.opset import lift
from passes.qdq import Editor, drop_unused_constants, fake_quantize
from passes.quantize import _fp4_activations, _integer_ops, _modelopt_run
from passes.quantize._channel_weights import SEVEN_BITS
from passes.quantize._int8_layers import QDQ_IN_16_BITS
from passes.quantize._modelopt_weights import LearnedWeight, matched, recognised
from passes.quantize._placing import Activation, smoothed
from passes.target import Target

Config = Literal[
    "INT8_DEFAULT_CFG", "INT8_SMOOTHQUANT_CFG", "INT8_WEIGHT_ONLY_CFG", "FP8_DEFAULT_CFG", "NVFP4_DEFAULT_CFG",
    "W4A16_NVFP4_CFG", "INT4_AWQ_CFG", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
]  # fmt: skip

OPSETS = {"int8": 13, "fp8": 19, "int4": 21, "nvfp4": 23}
"""Least opset of each format's quantizers."""

UINT8_MIDDLE = 128
"""Zero of uint8 inputs for ONNX Runtime: int8's 256 steps, in the type that its kernels are much faster with."""

NEVER_NEGATIVE = ("Relu", "Sigmoid", "Softmax")
KEEPS_SIGN = (
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Identity",
)

GONE = "no layer of the graph comes from it: another pass merged it, or the model does not use it"


class QuantizeModelOptTorch(Pass):
    """Place what ModelOpt's torch-side configurations learned (needs the extra `modelopt` and a PyTorch source)."""

    version: ClassVar[int] = 2

    needs_calibration = True

    config: Config | Literal["auto"] = pydantic.Field(
        default="INT8_DEFAULT_CFG",
        description="ModelOpt's name of the configuration; `auto` is its AutoQuantize over `formats`.",
    )
    formats: tuple[Config, ...] = pydantic.Field(
        default=("INT8_SMOOTHQUANT_CFG",), min_length=1, description="For `auto`: what a layer may become."
    )
    effective_bits: float = pydantic.Field(
        default=10.0, gt=0, le=16, description="For `auto`: bits per weight on average, unquantized ones count 16."
    )
    skip: tuple[str, ...] = pydantic.Field(
        default=(),
        description="Layers to leave in floating point: shell-style patterns of modules, nodes or operators.",
    )
    ops: tuple[Literal["MatMul", "Gemm", "Conv"], ...] = pydantic.Field(
        default=("MatMul", "Gemm", "Conv"), description="Operator types that quantizers are placed at."
    )
    weight_bits: Literal["auto", 8] = pydantic.Field(
        default="auto",
        description="8 keeps INT8 weights as ModelOpt learned them; auto is 7 on x86 processors without VNNI, "
        "about a tenth faster there and exact in any session, else 8.",
    )

    def missing(self) -> str | None:
        """How to install ModelOpt, or None."""
        return _modelopt_run.missing()

    def lesson(self) -> dict[str, Any]:
        """ModelOpt calibrates a copy of the module with this configuration."""
        if self.config != "auto":
            return {"config": self.config}
        return {"config": "auto", "formats": list(self.formats), "effective_bits": self.effective_bits}

    def check(self, target: Target) -> str | None:
        """Whether `target` runs every format that may come out."""
        for config in self.formats if self.config == "auto" else (self.config,):
            wanted = _precision_of(config)
            if wanted in (*target.precisions, *target.emulated) or (
                target.dialect == "onnxruntime" and wanted != "fp4"
            ):
                continue
            return (
                f"{config}: {target.title} does not run {wanted.upper()}; it runs {', '.join(target.precisions)}."
            )
        return None

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Place the quantizers of every layer that was learned, and name the others.

        Raises:
            PassFailed: When nothing was learned.
        """
        taught = self._read(context)
        chosen, skips = self._choose(model, taught.layers, context.target)
        if lift(model, max(map(_least_opset, chosen), default=0), "what ModelOpt chose"):
            chosen, skips = self._choose(model, taught.layers, context.target)  # conversion may replace nodes
        editor = Editor(model)
        spent: list[ir.Value] = []
        before = sum(item.layer.weight.stored.nbytes for item in chosen)
        for item in chosen:
            spent += [value for value in item.layer.node.inputs[1:] if value is not None]
            _place(editor, item, context.target)
        drop_unused_constants(spent)
        formats = {item.lesson.module: str(item.lesson.weight) for item in chosen}
        figures: dict[str, float | int | str] = {
            "learned by": taught.tool, "learned": lessons.tidy(taught.layers), "weight bytes before": before
        }  # fmt: skip
        if self.config == "auto":
            figures |= {f"format of {name}": kind for name, kind in formats.items()}
        return PassResult(
            patterns=(Pattern("layer", len(chosen)),), skips=tuple(skips),
            changed=tuple(item.lesson.module for item in chosen), figures=figures,
            notes=(*taught.notes, *_weight_only(chosen, context.target), *_narrowed(chosen, context.target)),
        )  # fmt: skip

    def _read(self, context: PassContext) -> lessons.Lessons:
        file = context.lessons.get(lessons.key(self.lesson()))
        if file is None:
            raise PassFailed(
                "modelopt_torch: nothing was learned: ModelOpt needs the source's own module. Run it in a recipe "
                "whose source is of kind torch or huggingface."
            )
        try:
            return lessons.read(Path(file))
        except lessons.BadLessons as error:
            raise PassFailed(f"modelopt_torch: {error}.") from error

    def _choose(
        self, model: ir.Model, taught: Sequence[LayerLesson], target: Target
    ) -> tuple[list[LearnedWeight], list[Skip]]:
        """The layers to quantize, and the others with their reasons; nothing is changed."""
        found, skips = weighted.find(model, self.ops)
        lesson_of = _assign(found, taught)
        chosen: list[LearnedWeight] = []
        for layer in found:
            decided = self._decide(layer, lesson_of.get(layer.node), target)
            if isinstance(decided, str):
                skips.append(weighted.skip(layer.node, decided))
            else:
                chosen.append(decided)
        reached = {lesson.module for lesson in lesson_of.values()}
        gone = [lesson.module for lesson in taught if lesson.weight and lesson.module not in reached]
        skips += [Skip(module, GONE, module) for module in gone]
        return chosen, skips

    def _decide(self, layer: Layer, lesson: LayerLesson | None, target: Target) -> LearnedWeight | str:
        if names.matches(layer.node, self.skip):
            return "listed under skip"
        module = names.module_of(layer.node)
        if lesson is None:
            return f"comes from module '{module}', of which ModelOpt learned nothing" if module else "has no module"
        if lesson.reason or lesson.weight is None:
            return lesson.reason or "ModelOpt quantizes its input alone"
        if lesson.block and layer.node.op_type == "Conv":
            return "Conv has no blocks along K"
        if (
            lesson.block
            and layer.weight.shape[0] % lesson.block
            and (target.dialect == "tensorrt" or lesson.weight == "nvfp4")
        ):
            return f"sums over K = {layer.weight.shape[0]}, no multiple of ModelOpt's block of {lesson.block}"
        if lesson.input_factors is not None and layer.node.op_type == "Conv":
            return "ModelOpt smooths its input, which is not placed at convolutions"
        found = matched(layer, lesson)
        narrow = self.weight_bits == "auto" and target.dialect == "onnxruntime" and target.sums_in_16_bits
        if isinstance(found, LearnedWeight) and narrow and lesson.weight == lesson.input == "int8":
            return dataclasses.replace(found, integers=SEVEN_BITS)
        return found


def _least_opset(item: LearnedWeight) -> int:
    """What the layer's quantizers need; their scales have the type that it computes in."""
    least = OPSETS[item.lesson.weight] if item.lesson.weight else 0
    return least if item.layer.weight.dtype == ir.DataType.FLOAT else max(least, QDQ_IN_16_BITS)


def _precision_of(config: str) -> str:
    return "fp4" if "NVFP4" in config else config.partition("_")[0].lower()


def _assign(found: Sequence[Layer], taught: Sequence[LayerLesson]) -> dict[ir.Node, LayerLesson]:
    """Each layer's lesson: by its module's name, else by its weight among lessons that no name calls for."""
    known = {lesson.module: lesson for lesson in taught}
    named = {names.module_of(layer.node) for layer in found}
    orphans = [lesson for lesson in taught if lesson.weight and lesson.module not in named]
    assigned = {}
    for layer in found:
        lesson = known.get(names.module_of(layer.node)) or recognised(layer, orphans)
        if lesson is not None:
            assigned[layer.node] = lesson
    return assigned


def _place(editor: Editor, item: LearnedWeight, target: Target) -> None:
    layer, lesson = item.layer, item.lesson
    if (
        target.quantize.integer_ops
        and lesson.weight == lesson.input == "int8"
        and layer.node.op_type != "Conv"
        and _integer_ops.refusal(layer) is None
    ):
        step = numerics.symmetric_scale(np.asarray(lesson.input_amax), numerics.INT8)
        activation = Activation(float(step), _uint8_zero(layer, lesson), False)
        _integer_ops.replace_layer(editor, layer, item.channel_weight(), activation, item.divisor)
        return
    layer.node.replace_input_with(0, smoothed(editor, layer, item.divisor))
    _quantize_input(editor, layer, lesson, target)
    layer.node.replace_input_with(1, item.place(editor))
    if layer.transposed:
        layer.node.attributes["transB"] = ir.AttrInt64("transB", 0)


def _quantize_input(editor: Editor, layer: Layer, lesson: LayerLesson, target: Target) -> None:
    if lesson.input is None:
        return
    source = layer.activation
    amax = np.asarray(lesson.input_amax)
    if lesson.input == "nvfp4":
        if target.dialect == "tensorrt":
            _fp4_activations.quantize_input(editor, layer.node, {str(source.name): float(amax)})
        return
    grid = {"int8": numerics.INT8, "fp8": numerics.FP8_E4M3}[lesson.input]
    step = numerics.symmetric_scale(amax, grid, layer.weight.dtype.numpy())
    scale = editor.constant(f"{source.name}_scale", step)
    middle = np.zeros((), grid.dtype)
    if lesson.input == "int8" and "int8" in target.quantize.asymmetric:
        middle = np.asarray(_uint8_zero(layer, lesson), np.uint8)
    zero = editor.constant(f"{lesson.input}_zero", middle)
    layer.node.replace_input_with(0, fake_quantize(editor, source, layer.graph, scale, zero, None))


def _uint8_zero(layer: Layer, lesson: LayerLesson) -> int:
    """The zero of the uint8 quantizer that stands for a symmetric int8 one.

    Behind a Relu it is 0: the steps are the same, values beyond the learned range are kept instead of clipped, and
    ONNX Runtime drops the Relu, without which it computes a convolution in floating point.
    """
    if lesson.input_factors is not None:
        return UINT8_MIDDLE  # factors stand between the Relu and the quantizer: nothing is gained
    producer = layer.activation.producer()
    while producer is not None and producer.op_type in KEEPS_SIGN and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return 0 if producer is not None and producer.op_type in NEVER_NEGATIVE else UINT8_MIDDLE


def _weight_only(chosen: Sequence[LearnedWeight], target: Target) -> list[str]:
    dropped = sum(item.lesson.input == "nvfp4" for item in chosen)
    if not dropped or target.dialect == "tensorrt":
        return []
    return [f"{target.title} has no FP4 activations: {dropped} layers keep theirs in floating point."]


def _narrowed(chosen: Sequence[LearnedWeight], target: Target) -> list[str]:
    narrow = sum(item.integers is SEVEN_BITS for item in chosen)
    if not narrow:
        return []
    return [
        f"{target.title} sums products of 8 bits in 16: {narrow} layers keep ModelOpt's weights in seven bits. "
        "`weight_bits: 8` leaves them as learned: exact in this tool's sessions, about a tenth slower."
    ]
