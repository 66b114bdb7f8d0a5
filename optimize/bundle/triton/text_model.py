"""Text in, vector out: tokenizer → engine (→ pooling), as Python steps and an ensemble that chains them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from optimize.bundle.triton import config
from optimize.bundle.triton.engine_model import python_source
from optimize.bundle.triton.options import ServingOptions
from optimize.bundle.triton.tensors import Interface, Tensor
from optimize.errors import UsageError
from optimize.report.model import Report


def write(report: Report, models: Path, name: str, io: Interface, options: ServingOptions) -> None:
    """Write the steps around the model `name`, and the ensemble `<name>_text`.

    Raises:
        UsageError: When the model does not take what a tokenizer gives, or cannot be pooled.
    """
    assert options.tokenizer is not None
    known = ("input_ids", "attention_mask", "token_type_ids")
    strange = [tensor.name for tensor in io.inputs if tensor.name not in known]
    if strange or not io.max_batch:
        raise UsageError(f"a tokenizer cannot feed {', '.join(strange) or 'a model without a batch axis'}.")
    if not options.tokenizer.is_file():
        raise UsageError(f"{options.tokenizer}: no such file; name a tokenizer.json.")
    longest = _longest(report, io)
    text = Tensor("text", "string", ("batch", 1), (1,), (1,))
    parameters = {"maximum_tokens": str(longest), "pad_to": str(options.pad_to)}
    gives = list(io.inputs)
    if options.pooling == "mean" and "attention_mask" not in [tensor.name for tensor in gives]:
        mask = dataclasses.replace(io.inputs[0], name="attention_mask")
        gives.append(mask)
    tokenizer = f"{name}_tokenizer"
    _step(
        models / tokenizer,
        config.step(tokenizer, (text,), tuple(gives), io.max_batch, options, parameters),
        "tokenizer_model.py",
    )
    shutil.copyfile(options.tokenizer, models / tokenizer / "1" / "tokenizer.json")
    outputs = io.outputs
    names = {tensor.name: tensor.name for tensor in io.inputs}
    steps = [
        (tokenizer, {"text": "text"}, {tensor.name: tensor.name for tensor in gives}),
        (name, names, {tensor.name: f"{name}.{tensor.name}" for tensor in io.outputs}),
    ]
    if options.pooling == "mean":
        vectors = io.outputs[0]
        if len(vectors.dims) != 2 or vectors.data_type != "TYPE_FP32":
            raise UsageError(
                f"pooling: '{vectors.name}' is {vectors.dtype} {list(vectors.shape)}; expected float32 "
                "(batch, tokens, width).",
                hint="A model that pools inside needs no pooling step.",
            )
        mask = next(tensor for tensor in gives if tensor.name == "attention_mask")
        pooled = Tensor("pooled", "float32", ("batch", vectors.shape[2]), vectors.dims[1:], vectors.typical[1:])
        takes = (dataclasses.replace(vectors, name="vectors"), dataclasses.replace(mask, name="mask"))
        _step(
            models / f"{name}_pooling",
            config.step(f"{name}_pooling", takes, (pooled,), io.max_batch, options, {}),
            "pooling_model.py",
        )
        steps.append(
            (
                f"{name}_pooling",
                {"vectors": f"{name}.{vectors.name}", "mask": "attention_mask"},
                {"pooled": "pooled"},
            )
        )
        outputs = (pooled,)
    else:
        steps[1] = (name, names, {tensor.name: tensor.name for tensor in io.outputs})
    whole = f"{name}_text"
    described = config.ensemble(whole, (text,), outputs, io.max_batch, options, steps)
    (models / whole / "1").mkdir(parents=True)
    # An ensemble's version holds nothing, but the folder must be there; archives keep no empty folders.
    (models / whole / "1" / "README").write_text("An ensemble has no files of its own.\n", encoding="utf-8")
    (models / whole / "config.pbtxt").write_text(config.text(described), encoding="utf-8")


def _longest(report: Report, io: Interface) -> int:
    axis = io.inputs[0].shape[1]
    if isinstance(axis, int):
        return axis
    known = report.source.get("ranges", {}).get(str(axis), {}).get("maximum")
    if known is None:
        raise UsageError(f"nobody says how long axis '{axis}' may be.", hint="Give it a range in the recipe.")
    return int(known)


def _step(folder: Path, described: Any, source: str) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config.text(described), encoding="utf-8")
    python_source(folder / "1", source)
