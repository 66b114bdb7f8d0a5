"""A commented starter recipe for a model: what is known filled in, the rest said in comments."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from optimize.errors import UsageError
from optimize.recipe.faults import did_you_mean
from optimize.recipe.presets import Preset, available
from optimize.recipe.variables import escaped

DEFAULT_PRESET = "int8-cpu"


def starter(model: str | None, preset: str | None, beside: Path) -> str:
    """The starter's text.

    Args:
        model: An ONNX file, a .pt2 program, a Hugging Face folder, or file.py:function; None: a placeholder.
        preset: One of `presets.available()`; None: INT8 on a CPU.
        beside: The folder the recipe will lie in; the model's path is written relative to it.

    Raises:
        UsageError: When the preset is unknown, or the model is none of these or cannot be read.
    """
    name = preset or DEFAULT_PRESET
    found = available().get(name)
    if found is None:
        raise UsageError(f"no preset is called '{name}'{did_you_mean(name, available())}")
    lines = [
        f"# {found.summary}",
        "#",
        "# Check it with `optimize recipe show`, see the plan with `optimize check`, run it with `optimize run`.",
        "schema_version: 1",
        f"name: {_name(model)}-{name}",
        "",
        *_source(model, beside),
        "",
        f"target: {found.target}    # `optimize doctor` lists the devices",
        "",
        "passes:    # in order; `optimize passes ls` lists them, `optimize passes show NAME` their options",
        *(f"  - {item}    # {why}" for item, why in found.passes),
        "",
        "engine:",
        f"  kind: {found.engine}",
        "",
        *_data(found),
        "",
        "gates:    # what the result must hold; the exit code is 1 when one does not",
        f"  accuracy.cosine.min: {found.cosine}",
        *([f"  speedup_over_export.min: {found.speedup}"] if found.speedup is not None else []),
        "  # size.max: 40MB",
        "  # latency.p50.max: 12ms",
    ]
    return "\n".join(lines) + "\n"


def _name(model: str | None) -> str:
    if model is None:
        return "model"
    stem = model.rpartition(":")[2] if ":" in model else Path(model).stem or Path(model).name
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in stem)
    return kept.strip("-.") or "model"


def _data(preset: Preset) -> Iterator[str]:
    if preset.needs_calibration:
        yield "calibration:    # samples that activation ranges are learned from; a few hundred will do"
        yield "  data: calibration.npz    # or a folder of .npz files, or file.py:function yielding {input: array}"
        yield "  samples: 256"
        yield ""
    yield "evaluate:"
    yield "  data: random    # real samples tell the truth: a .npz file, a folder of them, or file.py:function"
    yield "  samples: 64"
    yield "  kind: auto    # classification, embedding or regression"
    yield "  # labels: label    # name of the array in each batch that holds class labels"


def _source(model: str | None, beside: Path) -> Iterator[str]:
    yield "source:"
    if model is None:
        yield "  kind: onnx    # or torch, exported_program, huggingface"
        yield "  path: model.onnx"
        return
    path = Path(model)
    shown = Path(os.path.relpath(path, beside)).as_posix()
    if path.suffix == ".onnx":
        yield "  kind: onnx"
        yield f"  path: {_quoted(shown)}"
        yield from _onnx_ranges(path)
    elif path.suffix == ".pt2":
        _must_exist(path)
        yield "  kind: exported_program"
        yield f"  path: {_quoted(shown)}"
        yield "  # input_names: [x]    # names for the inputs, in order"
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"{model}: the folder has no config.json.", hint="Give a Hugging Face folder.")
        yield "  kind: huggingface"
        yield f"  path: {_quoted(shown)}"
    elif ":" in model:
        file, _, function = model.rpartition(":")
        if file.endswith(".py"):
            _must_exist(Path(file))
            file = Path(os.path.relpath(file, beside)).as_posix()
        yield "  kind: torch"
        yield f"  factory: {_quoted(f'{file}:{function}')}    # gives the module and its example inputs"
        yield "  # arguments: {hidden: 384}    # keyword arguments for it"
    else:
        _must_exist(path)
        raise UsageError(
            f"{model}: not a model this knows.",
            hint="Give a .onnx or .pt2 file, a Hugging Face folder, or file.py:function.",
        )


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise UsageError(f"{path}: no such file.", hint="Check the path.")


def _onnx_ranges(path: Path) -> Iterator[str]:
    """The file's inputs and outputs as comments, and a range for each named axis."""
    import onnx
    from google.protobuf.message import DecodeError

    _must_exist(path)
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError as error:
        raise UsageError(f"{path}: not an ONNX model, or damaged.", hint="Export it again.") from error
    weights = {item.name for item in graph.initializer}
    axes: dict[str, None] = {}
    for label, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            if value.name in weights:
                continue
            kind = value.type.tensor_type
            sizes = [
                dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in kind.shape.dim
            ]
            dtype = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
            yield f"  # {label} {value.name}: {dtype} ({', '.join(map(str, sizes))})"
            if label == "input":
                axes.update(dict.fromkeys(dim.dim_param for dim in kind.shape.dim if dim.dim_param))
    if axes:
        yield "  ranges:    # sizes the engine must take, and the one to tune for: mend these guesses"
        yield from (f"    {_quoted(axis)}: {{minimum: 1, typical: 8, maximum: 32}}" for axis in axes)


def _quoted(text: str) -> str:
    """Text as YAML takes it: plain where that is safe, else in single quotes."""
    is_plain = re.fullmatch(r"(\.\./)*[A-Za-z][A-Za-z0-9_./-]*", text) is not None
    if is_plain and text.lower() not in ("null", "true", "false"):
        return text
    doubled = escaped(text).replace("'", "''")
    return f"'{doubled}'"
