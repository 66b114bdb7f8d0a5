"""`optimize convert`: one line without a recipe."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from optimize import console
from optimize.cli.run import StoreOption, show, store_folder, until_step

_FORMATS: dict[str, tuple[list[tuple[str, dict[str, Any]]], float]] = {
    "fp16": ([("cast.fp16", {})], 0.999),
    "bf16": ([("cast.bf16", {})], 0.99),
    "int8": ([("quantize.int8", {})], 0.98),
    "fp8": ([("quantize.fp8", {})], 0.98),
    "int4": ([("quantize.int4", {})], 0.95),
    "fp4": ([("quantize.fp4", {})], 0.95),
}
"""Passes per format, and the mean cosine below which the result is refused unless the user says otherwise."""

_CALIBRATED_INT8: list[tuple[str, dict[str, Any]]] = [
    ("surgery.split_outliers", {}),
    ("quantize.int8", {"activations": "static", "smooth": 0.6, "rounding": "output", "bias_correction": True}),
]
"""INT8 where there is data to calibrate on, and for TensorRT, which takes calibrated ranges only."""

_STEM: tuple[Any, ...] = ("surgery.stem_space_to_depth", {"surgery.pad_channels": {"multiple": 16}})
"""Passes that fill a GPU's matrix units at a network's first convolution."""


def convert(
    model: Annotated[
        str, typer.Argument(help="An ONNX file, a .pt2 program, a Hugging Face folder, or file.py:function.")
    ],
    int8: Annotated[bool, typer.Option("--int8", help="INT8 weights and activations.")] = False,
    fp8: Annotated[bool, typer.Option("--fp8", help="FP8 (E4M3) weights and activations.")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="INT4 weights.")] = False,
    fp4: Annotated[bool, typer.Option("--fp4", help="NVFP4.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="FP16 throughout.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="BF16 throughout.")] = False,
    engine: Annotated[str, typer.Option(help="onnxruntime or tensorrt.")] = "onnxruntime",
    target: Annotated[str | None, typer.Option(help="The device; `optimize doctor` lists them.")] = None,
    calibrate: Annotated[
        str | None, typer.Option(help="Calibration data: .npz, a folder of them, a function.")
    ] = None,
    evaluate: Annotated[
        str, typer.Option(help="Evaluation data, likewise; `random` draws from the inputs.")
    ] = "random",
    samples: Annotated[int, typer.Option(help="Evaluation samples when they are random.")] = 64,
    min_cosine: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Fail below this mean cosine with the original.")
    ] = None,
    fuse: Annotated[bool, typer.Option(help="Fuse kernels.")] = True,
    skip: Annotated[
        list[str] | None, typer.Option(help="Layers to leave in full precision; may be repeated.")
    ] = None,
    ranges: Annotated[
        list[str] | None, typer.Option("--range", metavar="AXIS=MIN:TYPICAL:MAX", help="Range of a dynamic axis.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("out"),
    store: StoreOption = None,
    until: Annotated[
        str | None, typer.Option(help="Stop after `passes` or `build`; what comes later is neither run nor judged.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> int:
    """Optimise a model in one line; the resolved recipe is written beside the result."""
    from optimize.cli.progress import RunProgress
    from optimize.errors import UsageError
    from optimize.pipeline import running
    from optimize.recipe import reading

    chosen = {"int8": int8, "fp8": fp8, "int4": int4, "fp4": fp4, "fp16": fp16, "bf16": bf16}
    formats = [name for name, wanted in chosen.items() if wanted]
    if len(formats) > 2 or (len(formats) == 2 and not {"fp16", "bf16"} & set(formats)):
        raise UsageError(
            f"--{' --'.join(formats)}: choose one format, with --fp16 or --bf16 beside it if you like."
        )
    passes, limit = _passes(formats, engine, fuse, skip, calibrated=calibrate is not None)
    data: dict[str, Any] = {
        "schema_version": 1,
        "name": _name_of(model),
        "source": {**_source(model), **({"ranges": _ranges(ranges)} if ranges else {})},
        "target": target or ("cpu" if engine == "onnxruntime" else "h100"),
        "passes": passes,
        "engine": {"kind": engine},
        "evaluate": {"data": evaluate, **({"samples": samples} if evaluate == "random" else {})},
        "gates": {"accuracy.cosine.min": limit if min_cosine is None else min_cosine},
    }
    if calibrate:
        data["calibration"] = {"data": calibrate}
    recipe = reading.from_data(data, base=Path.cwd())
    options = running.RunOptions(
        store=store_folder(store),
        output=output,
        command=shlex.join(["optimize", *sys.argv[1:]]),
        until=until_step(until),
    )
    with RunProgress() as progress:
        result = running.run(recipe, options, progress)
    show(result, as_json=as_json)
    if not as_json and evaluate == "random":
        console.err("note: accuracy was measured on random inputs; give --evaluate real data to trust it.")
    return result.exit_code


def _passes(
    formats: list[str], engine: str, fuse: bool, skip: list[str] | None, *, calibrated: bool
) -> tuple[list[Any], float]:
    """The passes for the chosen formats, and the mean cosine below which their result is refused."""
    limit = 0.9999
    casts: list[Any] = []
    quantizers: list[Any] = []
    for name in formats:
        steps, floor = _FORMATS[name]
        limit = min(limit, floor)
        if name == "int8" and (calibrated or engine == "tensorrt"):
            steps = _CALIBRATED_INT8
        for step, fields in steps:
            skipped = {"skip": skip} if skip and not step.startswith("surgery.") else {}
            made = {step: {**fields, **skipped}}
            (casts if step.startswith("cast.") else quantizers).append(made)
    fused = ["fuse"] if fuse else []
    # TensorRT has a fused attention layer for 16 bits alone: the graph is cast before fusion looks for it.
    before, after = (casts, []) if engine == "tensorrt" else ([], casts)
    # Measured in 16 bits, where they take a fifth off a ResNet-50; without such a convolution they do nothing.
    stem = [*_STEM] if fuse and engine == "tensorrt" and casts and not quantizers else []
    return ["clean", *before, *fused, *after, *stem, *quantizers], limit


def _source(model: str) -> dict[str, Any]:
    path = Path(model)
    if path.suffix == ".onnx":
        return {"kind": "onnx", "path": model}
    if path.suffix == ".pt2":
        return {"kind": "exported_program", "path": model}
    if path.is_dir():
        return {"kind": "huggingface", "path": model}
    if ":" in model:
        return {"kind": "torch", "factory": model}
    from optimize.errors import UsageError

    raise UsageError(
        f"'{model}' is no model that optimize knows.",
        hint="Give an .onnx file, a .pt2 program, a Hugging Face folder, or file.py:function.",
    )


def _ranges(given: list[str]) -> dict[str, dict[str, int]]:
    from optimize.errors import UsageError

    found = {}
    for item in given:
        axis, _, sizes = item.partition("=")
        parts = sizes.split(":")
        if not axis or len(parts) != 3 or not all(part.isdigit() for part in parts):
            raise UsageError(f"--range: expected AXIS=MIN:TYPICAL:MAX, got '{item}'.")
        found[axis] = dict(zip(("minimum", "typical", "maximum"), map(int, parts), strict=True))
    return found


def _name_of(model: str) -> str:
    """The file's or folder's name in the letters that a run's name may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model.partition(":")[0]).stem).strip("._-") or "model"
