"""What became of the graph: the layers of a built engine, their precisions and the ONNX nodes in them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import onnx_ir as ir
import pydantic

KINDS: Mapping[str, str] = {
    "MatMul": "matmuls", "Gemm": "matmuls", "Conv": "convolutions", "ConvTranspose": "convolutions",
    "Attention": "attentions", "MatMulNBits": "matmuls",
}  # fmt: skip
"""What the operators that do the arithmetic are counted as."""

DTYPES: Mapping[str, str] = {
    "Float": "fp32", "Half": "fp16", "BFloat16": "bf16", "FP8": "fp8", "Int8": "int8", "Int4": "int4",
    "FP4E2M1": "fp4", "FP4": "fp4", "Int32": "int32", "Int64": "int64", "Bool": "bool", "UInt8": "uint8",
    "E8M0": "e8m0",
}  # fmt: skip
"""TensorRT's names of data types, as targets spell them."""

_BITS: Mapping[str, int] = {
    "fp32": 32, "int32": 32, "int64": 64, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "uint8": 8, "bool": 8,
    "e8m0": 8, "int4": 4, "fp4": 4,
}  # fmt: skip

_FLOATING = frozenset({"fp32", "fp16", "bf16", "fp8", "int8", "int4", "fp4"})
_ARITHMETIC = ("custom", "gemm", "matrix", "conv", "correlation", "fusion", "mha", "attention", "kgen")
_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"Constants: \[(?P<constants>.*?)\], Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), "
    r"StreamId: \d+, Metadata: (?P<metadata>.*)$"
)
_TENSOR = re.compile(r"Name: (.+?), Dimensions: (\[[-\d,]*\]), .*?Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: (.*)\]")
_SEPARATORS = re.compile("[\x1e\x1f]")


class Tensor(pydantic.BaseModel):
    """An operand of a layer.

    Attributes:
        shape: An int per axis, -1 for a dynamic one.
        dtype: "fp16", "int4".
    """

    model_config = pydantic.ConfigDict(frozen=True)

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bits(self) -> int:
        """Size with every dynamic axis counted as 1, for ranking operands."""
        size = _BITS.get(self.dtype, 32)
        for axis in self.shape:
            size *= max(axis, 1)
        return size


class Layer(pydantic.BaseModel):
    """One layer of a built engine.

    Attributes:
        name: The library's own name.
        kind: The library's own kind: "gemm", "kgen".
        precision: What it computes in: "fp8"; "int4 weights, fp16" when only its weights are narrow.
        nodes: ONNX nodes that were fused into it.
        tactic: The kernel chosen, or "".
    """

    model_config = pydantic.ConfigDict(frozen=True)

    name: str
    kind: str
    inputs: tuple[Tensor, ...] = ()
    constants: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    nodes: tuple[str, ...] = ()
    tactic: str = ""

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def precision(self) -> str:
        """The narrowest type of the data it reads, told apart from that of its weights alone."""
        if not (self.inputs or self.constants):
            return "not told"
        if self.is_builtin:
            return "fp16"
        data = [tensor.dtype for tensor in self.inputs if tensor.dtype in _FLOATING]
        weights = [tensor.dtype for tensor in self.constants if len(tensor.shape) > 1]
        weights = [dtype for dtype in weights if dtype in _FLOATING]
        wide = max(data or weights or ["int32"], key=lambda dtype: _BITS[dtype])
        narrow = min(weights or data or [wide], key=lambda dtype: _BITS[dtype])
        if data and _BITS[narrow] < _BITS[wide]:
            return f"{narrow} weights, {wide}"
        return wide

    @property
    def is_builtin(self) -> bool:
        """Whether the built-in plugin computes it in 16 bits: its weights are bytes, `(1, 1, size)`."""
        is_plugin = any(word in self.kind.lower() for word in ("custom", "plugin"))
        bytes_ = (tensor for tensor in self.constants if tensor.dtype in ("int8", "uint8"))
        return is_plugin and any(len(tensor.shape) == 3 and tensor.shape[:2] == (1, 1) for tensor in bytes_)

    @property
    def is_reformat(self) -> bool:
        """Whether it only moves or converts data between layouts."""
        text = f"{self.kind} {self.name}".lower()
        return "reformat" in text or re.fullmatch(r"__myl_(?:Move|Cast|Tran|Resh|Copy)+_\S*", self.name) is not None


class Layers(pydantic.BaseModel):
    """All layers of an engine.

    Attributes:
        source: Where the list comes from: the engine inspector, the builder's log (where no device is there
            to load the engine), or nowhere.
        summary: Sentences: "61 of 74 matmuls run in fp8, 13 in fp16."
        counts: Per kind of arithmetic, ONNX nodes per precision: {"matmuls": {"fp8": 61, "fp16": 13}}; what the
            built-in plugin computes in 16 bits is counted apart, as "fp16 by the built-in plugin".
        reformats: Layers that only move data.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    source: Literal["inspector", "build log", "none"]
    layers: tuple[Layer, ...] = ()
    counts: dict[str, dict[str, int]] = {}
    reformats: int = 0
    summary: tuple[str, ...] = ()


def from_log(text: str) -> tuple[Layer, ...]:
    """Layers from the list a builder writes to its log."""
    found = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            found.append(
                Layer(
                    name=match["name"], kind=match["type"], tactic=match["tactic"],
                    inputs=_tensors(match["inputs"]), constants=_tensors(match["constants"]),
                    outputs=_tensors(match["outputs"]), nodes=_nodes(match["metadata"]),
                )
            )  # fmt: skip
    return tuple(found)


def _nodes(metadata: str) -> tuple[str, ...]:
    """ONNX nodes of a layer: "[ONNX Layer: a]", more after control characters."""
    parts = (_NODE.fullmatch(part.strip()) for part in _SEPARATORS.split(metadata))
    return tuple(part[1] for part in parts if part)


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(name=name, shape=tuple(json.loads(shape)), dtype=DTYPES.get(dtype, dtype.lower()))
        for name, shape, dtype in _TENSOR.findall(text)
    )


def from_inspector(text: str) -> tuple[Layer, ...]:
    """Layers from the engine inspector's JSON; a layer told only by name has no precision to tell."""
    found = []
    for item in json.loads(text).get("Layers", ()):
        if isinstance(item, str):
            found.append(Layer(name=item, kind=""))
            continue
        operands = {key: tuple(_operand(tensor) for tensor in item.get(key, ())) for key in _OPERANDS}
        found.append(
            Layer(
                name=str(item.get("Name", "")), kind=str(item.get("LayerType", "")),
                tactic=str(item.get("TacticName", "")),
                nodes=_nodes(str(item.get("Metadata", ""))),
                inputs=operands["Inputs"], constants=operands["Constants"], outputs=operands["Outputs"],
            )
        )  # fmt: skip
    return tuple(found)


_OPERANDS = ("Inputs", "Constants", "Outputs")


def _operand(item: Mapping[str, Any]) -> Tensor:
    dtype = str(item.get("Datatype") or item.get("Format/Datatype") or "")
    last = re.split(r"[\s(]", dtype.strip())[-1] if dtype not in DTYPES else dtype
    shape = tuple(axis for axis in item.get("Dimensions", ()) if isinstance(axis, int))
    return Tensor(name=str(item.get("Name", "")), shape=shape, dtype=DTYPES.get(last, last.lower()))


def summarise(
    source: Literal["inspector", "build log", "none"], layers: Sequence[Layer], model: ir.Model
) -> Layers:
    """Count what the model's arithmetic really runs in."""
    at: dict[str, list[Layer]] = {}
    for layer in layers:
        for part in layer.nodes:
            at.setdefault(part, []).append(layer)
    counts: dict[str, Counter[str]] = {}
    if layers:
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            kind = KINDS.get(node.op_type) if node.domain in ("", "ai.onnx", "com.microsoft") else None
            if kind:
                name = node.name or f"node_of_{node.outputs[0].name}"
                counts.setdefault(kind, Counter())[_precision(at.get(name, ()))] += 1
    return Layers(
        source=source,
        layers=tuple(layers),
        counts={kind: dict(count.most_common()) for kind, count in counts.items()},
        reformats=sum(layer.is_reformat for layer in layers),
        summary=tuple(_sentence(kind, count) for kind, count in counts.items()),
    )


def _precision(layers: Iterable[Layer]) -> str:
    """The precision of the layer that does the work of a node, of the several that mention it."""
    best = max(layers, key=_work, default=None)
    if best is None:
        return "folded away"
    return f"{best.precision} by the built-in plugin" if best.is_builtin else best.precision


def _work(layer: Layer) -> tuple[int, int]:
    text = f"{layer.kind} {layer.name}".lower()
    ranks = [len(_ARITHMETIC) - index for index, word in enumerate(_ARITHMETIC) if word in text]
    operands = (*layer.inputs, *layer.constants)
    return max(ranks, default=0), sum(tensor.bits for tensor in operands)


def _sentence(kind: str, count: Counter[str]) -> str:
    (first, most), *others = count.most_common()
    rest = "".join(f", {number} in {precision}" for precision, number in others)
    return f"{most} of {sum(count.values())} {kind} run in {first}{rest}."
