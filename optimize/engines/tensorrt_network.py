"""From an ONNX file to a TensorRT network, or to a sentence that names the node that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from google.protobuf.message import DecodeError

from optimize.engines.base import AxisRange, TensorSpec
from optimize.engines.tensorrt_library import Library
from optimize.engines.tensorrt_log import cleaned
from optimize.engines.tensorrt_options import Shapes
from optimize.errors import StageFailed
from passes.names import module_of

Profile = Mapping[str, Shapes]

_TYPES = "Cast one side, or leave precision to a cast pass: TensorRT networks are strongly typed."
_HINTS = (
    (" plugin.", "Name the library that has it with `plugins` under `engine:`."),
    ("No importer registered", "Rewrite it with operators TensorRT reads, or load a plugin for it."),
    ("is not supported in", "Rewrite it with operators TensorRT reads, or load a plugin for it."),
    ("same input types", _TYPES),
    ("must have same type", _TYPES),
    ("broadcast", "Check the shapes around this node."),
    ("topologically", "Give every value a name of its own and order nodes by their inputs (`clean` does)."),
)


def read(path: Path) -> ir.Model:
    """The model's structure; weights stay on disk."""
    try:
        return ir.load(path)
    except (OSError, ValueError, RuntimeError, DecodeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # onnx_ir wraps the telling error once per level it passes.
            cause = cause.__cause__
        said = getattr(cause, "strerror", None) or str(cause)
        raise StageFailed(f"{path.name} cannot be read as ONNX: {said}") from error


def parse(
    library: Library, builder: Any, logger: Any, path: Path, model: ir.Model, written: bytes | None = None
) -> tuple[Any, Any]:
    """A strongly typed network filled from `path`, and the parser that owns its weights.

    Args:
        library: Its parser.
        builder: Of the network.
        logger: Of the parser.
        path: The model, and where its weights lie.
        model: The same, for errors.
        written: Another form of the same model, which is then read instead.

    Raises:
        StageFailed: Naming the node, its source module and what to do.
    """
    api = library.api
    flag = api.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    parser = api.OnnxParser(network, logger)
    if not (parser.parse_from_file(str(path)) if written is None else parser.parse(written, str(path))):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise _failure(library, model, errors)
    return network, parser


def check_supported(library: Library, model: ir.Model) -> None:
    """Refuse what this flavour reads and then fails to build without naming a node.

    Raises:
        StageFailed: Naming the first node.
    """
    if library.flavour.has_int8_convolutions:
        return
    found = [
        node
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if node.op_type == "Conv" and all(_is_int8(value) for value in node.inputs[:2])
    ]
    if found:
        module = module_of(found[0])
        place = f"'{_label(found[0])}'" + (f" of module '{module}'" if module else "")
        more = f" and {len(found) - 1} more nodes are" if len(found) > 1 else " is"
        raise StageFailed(
            f"{library.flavour.title} has no INT8 convolutions, and node {place}{more} one.",
            hint="Quantize them with quantize.fp8, or leave Conv out of quantize.int8's `ops`.",
        )


def _is_int8(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return False
    stored = producer.inputs[0]
    zero = producer.inputs[2] if len(producer.inputs) > 2 else None
    kinds = [item.dtype for item in (stored, zero) if item is not None]
    return any(kind in (ir.DataType.INT8, ir.DataType.UINT8) for kind in kinds)


def _failure(library: Library, model: ir.Model, errors: Sequence[Any]) -> StageFailed:
    title = library.flavour.title
    if not errors:
        return StageFailed(f"{title} cannot read the model and gives no reason.")
    error = errors[0]
    node = _find(model, error.node_name(), error.node_operator(), error.node())
    said = cleaned(error.desc()).removeprefix(f"Invalid Node - {error.node_name()}").strip()
    hint = next((text for key, text in _HINTS if key in said), "Exclude or rewrite this node.")
    if node is None and not error.node_name():
        return StageFailed(f"{title} cannot read the model: {said}", hint=hint)
    operator = error.node_operator() or (node.op_type if node is not None else "?")
    place = f"node '{error.node_name() or _label(node)}' ({operator})"
    module = module_of(node) if node is not None else ""
    if module:
        place += f" of module '{module}'"
    more = f" ({len(errors) - 1} more nodes fail too.)" if len(errors) > 1 else ""
    return StageFailed(f"{title} cannot read {place}: {_sentence(said)}{more}", hint=hint)


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _label(node: ir.Node | None) -> str:
    if node is None:
        return "?"
    return node.name or f"node_of_{node.outputs[0].name}"


def _find(model: ir.Model, name: str, operator: str, index: int) -> ir.Node | None:
    """The node a parser error means: by name, else by its place in the file."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if name and _label(node) == name:
            return node
    nodes = list(model.graph)
    if 0 <= index < len(nodes) and (not operator or nodes[index].op_type == operator):
        return nodes[index]
    return None


def specs(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a graph, with the names of their dynamic axes."""
    found = []
    for value in values:
        dtype = value.dtype.numpy().name if value.dtype is not None else "float32"
        shape: list[int | str | None] = []
        for axis in value.shape or ():
            shape.append(axis if isinstance(axis, int) else axis.value)
        found.append(TensorSpec(str(value.name), dtype, tuple(shape)))
    return tuple(found)


def profiles(
    inputs: Sequence[TensorSpec], ranges: Mapping[str, AxisRange], given: Sequence[Profile]
) -> tuple[Profile, ...]:
    """The optimization profiles: those given, each completed from the axis ranges; or one from the ranges.

    Returns:
        Empty when no input has a dynamic axis.

    Raises:
        StageFailed: When a dynamic axis has no range, or a given shape does not fit its input.
    """
    known = {spec.name for spec in inputs}
    for profile in given:
        for name in profile:
            if name not in known:
                raise StageFailed(f"profiles name '{name}', the model's inputs are: {', '.join(known)}.")
    if all(isinstance(axis, int) for spec in inputs for axis in spec.shape) and not given:
        return ()
    return tuple(
        {
            spec.name: _fitting(spec, profile[spec.name]) if spec.name in profile else _ranged(spec, ranges)
            for spec in inputs
        }
        for profile in given or ({},)
    )


def _ranged(spec: TensorSpec, ranges: Mapping[str, AxisRange]) -> Shapes:
    low, typical, high = [], [], []
    for index, axis in enumerate(spec.shape):
        if isinstance(axis, int):
            found = AxisRange(axis, axis, axis)
        elif axis is not None and axis in ranges:
            found = ranges[axis]
        else:
            named = f" ('{axis}')" if axis else ""
            raise StageFailed(
                f"axis {index}{named} of input '{spec.name}' is dynamic and has no range.",
                hint="Give the source a range for it, or the engine `profiles` with min, opt and max shapes.",
            )
        low.append(found.minimum)
        typical.append(found.typical)
        high.append(found.maximum)
    return _fitting(spec, Shapes.model_construct(min=tuple(low), opt=tuple(typical), max=tuple(high)))


def _fitting(spec: TensorSpec, shapes: Shapes) -> Shapes:
    if shapes.are_values:
        return shapes
    if len(shapes.min) != len(spec.shape):
        raise StageFailed(
            f"profile of input '{spec.name}': expected rank {len(spec.shape)}, got {list(shapes.min)}."
        )
    for index, (axis, low, typical, high) in enumerate(
        zip(spec.shape, shapes.min, shapes.opt, shapes.max, strict=True)
    ):
        if not low <= typical <= high:
            raise StageFailed(
                f"profile of input '{spec.name}', axis {index}: opt must lie between min and max, "
                f"got min {low}, opt {typical}, max {high}.",
                hint="Correct the axis's range or the engine's `profiles`.",
            )
        if isinstance(axis, int) and (low, high) != (axis, axis):
            raise StageFailed(
                f"profile of input '{spec.name}', axis {index} is fixed at {axis}, got {low} to {high}."
            )
    return shapes


def add_profiles(builder: Any, config: Any, wanted: Sequence[Profile]) -> None:
    """Put the profiles into the builder's configuration.

    Raises:
        StageFailed: When TensorRT refuses one.
    """
    for number, profile in enumerate(wanted):
        made = builder.create_optimization_profile()
        for name, shapes in profile.items():
            place = made.set_shape_input if shapes.are_values else made.set_shape
            place(name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(made) < 0:
            raise StageFailed(f"TensorRT refuses optimization profile {number}: {dict(profile)}.")
