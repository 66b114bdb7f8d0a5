"""What another tool learned of a module's layers, as one file: ranges, formats and scales by module name.

The file is a .npz: `layers` holds JSON text, the arrays lie beside it as `<number>.<field>`. Nothing in it is code.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from passes import array_files

Array = np.ndarray[Any, np.dtype[Any]]

Grid = Literal["int8", "fp8", "int4", "nvfp4"]
"""Formats: int8 and int4 symmetric integers, E4M3, and E2M1 in blocks with E4M3 scales."""

ARRAYS = ("weight_amax", "input_amax", "input_factors", "plain_amax", "plain_norm")


class BadLessons(ValueError):
    """A file of lessons cannot be read: what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class LayerLesson:
    """One linear or convolution layer.

    Attributes:
        module: The layer's name in its source, "encoder.layer.0.output.dense".
        weight: Format of the weight; None leaves it in floating point.
        weight_amax: () per tensor, (out,) per channel or (out, blocks) float32: the magnitude that lands on the
            format's largest number, of the weight divided by `input_factors`.
        block: Elements along the input axis that share a scale; 0 for none.
        input: Format of the input; None leaves it.
        input_amax: () float32, the same for the input multiplied by `input_factors`.
        input_factors: (in,) float32 that the input is multiplied by and the weight divided by, or None.
        plain_amax: (out,) float32 largest magnitude of the weight as it was, before anything was learned.
        plain_norm: (out,) float32 its Euclidean norm.
        reason: Why the layer cannot be placed, or "".
    """

    module: str
    weight: Grid | None
    weight_amax: Array | None
    block: int
    input: Grid | None
    input_amax: Array | None
    input_factors: Array | None
    plain_amax: Array
    plain_norm: Array
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Lessons:
    """All layers, and full sentences about what else there was."""

    layers: tuple[LayerLesson, ...]
    notes: tuple[str, ...] = ()
    tool: str = ""


def key(asked: Mapping[str, Any]) -> str:
    """One text per request (`Pass.lesson`), to look its file up by."""
    return json.dumps(asked, sort_keys=True)


def write(lessons: Lessons, path: Path) -> None:
    """Write one file."""
    arrays: dict[str, Array] = {}
    rows = []
    for number, layer in enumerate(lessons.layers):
        for field in ARRAYS:
            value = getattr(layer, field)
            if value is not None:
                arrays[f"{number}.{field}"] = np.asarray(value, np.float32)
        rows.append({name: getattr(layer, name) for name in ("module", "weight", "block", "input", "reason")})
    text = json.dumps({"layers": rows, "notes": lessons.notes, "tool": lessons.tool})
    array_files.write(path, {"layers": np.array(text), **arrays})


def read(path: Path) -> Lessons:
    """Read a file that `write` wrote.

    Raises:
        BadLessons: When it is none.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            header = json.loads(str(stored["layers"]))
            layers = tuple(_layer(number, row, stored) for number, row in enumerate(header["layers"]))
            return Lessons(layers, tuple(header["notes"]), header["tool"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise BadLessons(f"'{path.name}' holds no lessons, or is damaged ({error})") from error


def _layer(number: int, row: dict[str, Any], stored: Any) -> LayerLesson:
    grids = (*get_args(Grid), None)
    if row["weight"] not in grids or row["input"] not in grids:
        raise ValueError(f"layer '{row['module']}' has an unknown format")

    def array(field: str) -> Array | None:
        name = f"{number}.{field}"
        return np.asarray(stored[name], np.float32) if name in stored.files else None

    plain_amax, plain_norm = array("plain_amax"), array("plain_norm")
    if plain_amax is None or plain_norm is None:
        raise ValueError(f"layer '{row['module']}' lacks its weight's magnitudes")
    return LayerLesson(
        module=str(row["module"]), weight=row["weight"], weight_amax=array("weight_amax"), block=int(row["block"]),
        input=row["input"], input_amax=array("input_amax"), input_factors=array("input_factors"),
        plain_amax=plain_amax, plain_norm=plain_norm, reason=str(row["reason"]),
    )  # fmt: skip


def tidy(layers: Sequence[LayerLesson]) -> str:
    """How many layers have which format: "34 in int8, 2 in floating point"."""
    counts: dict[str, int] = {}
    for layer in layers:
        kind = layer.weight or "floating point"
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{count} in {kind}" for kind, count in counts.items()) or "none"
