"""The reference pages, written from the code: `python -m optimize.recipe.reference [FOLDER]`."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pydantic
from pydantic.fields import FieldInfo

from optimize import console
from optimize.engines import registry as engines
from optimize.figures import FIGURES
from optimize.recipe.model import DataSpec, EvaluateSpec, Heading, ThroughputSpec
from optimize.recipe.presets import available
from optimize.recipe.reading import SOURCES
from optimize.targets import loading
from passes import registry
from passes.base import Pass

NOTE = "<!-- Written by `python -m optimize.recipe.reference`; edit the code's docstrings instead. -->"

_WRITING = """\
A recipe is one YAML 1.2 file: one run as data. Every fault is reported at once, with file, line and column.
`optimize recipe new` writes a starter, `optimize recipe schema` the JSON Schema that lets editors complete keys,
`optimize recipe show` checks a recipe, `optimize recipe resolve` writes it out in full.

```yaml
schema_version: 1
name: model-int8-cpu
source: {kind: onnx, path: model.onnx}
target: cpu
passes:
  - clean                          # a room's name: its default passes
  - fuse.attention                 # a pass
  - quantize.int8: {skip: [head]}  # a pass with options
engine: {kind: onnxruntime, threads: 4}
evaluate: {data: samples.npz}
gates: {accuracy.cosine.min: 0.99, size.max: 40MB}
```

## Extending, variables, paths

`extends: base.yaml` (or a list) lays this recipe over others: mappings key by key, everything else replaced. A
mapping with another `kind` replaces the one below. `null` takes a section or a gate away.

`variables: {samples: 64}` are used as `${samples}` and set by `--set samples=128`. A value that is nothing but
`${name}` keeps the variable's type; a list or a mapping may be set where the recipe's own value is one,
`--set "passes=[clean, fuse]"`. `$${` stands for a plain `${`. Variables do not work in `extends`.

A relative path starts from the folder of the file that says it; a path given by `--set` starts from the working
folder. `base: folder` moves that starting point for one file, and `base: {file: recipe.base}` to the folder that a
file beside it names: the resolved recipe, which is the same bytes in whichever output folder it lies,
uses it to reach its files. `output` alone starts from the working folder. What stands under `arguments` is handed
to your function as it is.

YAML tags, merge keys (`<<`), duplicate keys and directives are refused."""


def recipe_page() -> str:
    """docs/recipe-reference.md."""
    lines = ["# Recipe reference", NOTE, _WRITING, "## Keys", *_table(Heading, absent={"name": "the file's name"})]
    lines += ["Beside these: `source`, `target`, `passes`, `engine`, `calibration`, `evaluate`, `gates`, below."]
    lines += ["## source", "Where the model comes from. `kind` is one of:"]
    for kind, source in SOURCES.items():
        lines += [f"### source, kind: {kind}", _first_line(source), *_table(source, leave_out="kind")]
    lines += ["Each of `ranges` has `minimum`, `typical` and `maximum`: sizes the engine takes and is tuned for."]
    lines += ["## target", "The device: " + ", ".join(f"`{name}`" for name in loading.names()) + "."]
    lines += ["## passes", "See [passes](passes.md)."]
    lines += ["## engine", "What runs the result; a bare name (`engine: onnxruntime`) takes its defaults."]
    for kind in engines.kinds():
        options = engines.options_class(kind)
        lines += [f"### engine, kind: {kind}", _first_line(options), *_table(options, leave_out="kind")]
    lines += ["## calibration", _first_line(DataSpec), *_table(DataSpec)]
    lines += ["## evaluate", _first_line(EvaluateSpec), *_table(EvaluateSpec)]
    lines += ["### evaluate.throughput", _first_line(ThroughputSpec), *_table(ThroughputSpec)]
    lines += ["## gates", _GATES, *_figures()]
    lines += ["## Presets", "Starting points for `optimize recipe new --preset NAME`:"]
    lines += ["\n".join(f"- `{name}`: {preset.summary}" for name, preset in available().items())]
    return "\n\n".join(lines) + "\n"


_GATES = """\
Limits by figure, each ending in `.min` or `.max`, flat (`size.max: 40MB`) or nested (`size: {max: 40MB}`). A gate
that does not hold, or whose figure could not be measured, ends the run with exit code 1."""


def passes_page() -> str:
    """docs/passes.md."""
    lines = ["# Passes", NOTE]
    lines += [
        "A pass changes the graph. Recipes name them in order; a room's bare name stands for its default list.\n"
        "Every pass also takes `expect`, the number of rewrites that must be found per pattern, so that a model\n"
        "that changed underneath fails the run instead of quietly losing a fusion.\n\n"
        "What `skip` names is left as it is: each entry is a shell pattern of a source module (and all below it),\n"
        "a node's name or an operator type; `output:h` is the one node whose first output is `h`, where nothing\n"
        "else tells two nodes apart."
    ]
    for room in registry.ROOMS:
        names = [name for name in registry.names() if name.startswith(f"{room}.")]
        if not names:
            continue
        lines += [f"## {room}"]
        try:
            default = ", ".join(f"`{name}`" for name in registry.room_default(room))
            lines += [f"`{room}` alone runs {default}."]
        except registry.UnknownPass:
            pass
        for name in names:
            lines += _pass(name)
    return "\n\n".join(lines) + "\n"


def _pass(name: str) -> Iterator[str]:
    found = registry.find(name)
    yield f"### {name}"
    yield _first_line(found)
    module = inspect.getmodule(found)
    picture = inspect.cleandoc(module.__doc__ or "") if module is not None else ""
    if picture:
        yield f"```text\n{picture}\n```"
    if found.needs_calibration:
        yield "Needs calibration data."
    yield from _table(found, leave_out="expect")


def _first_line(model: type[Any]) -> str:
    return (inspect.getdoc(model) or "").partition("\n")[0]


def _figures() -> Iterator[str]:
    rows = ["| figure | unit | meaning |", "|---|---|---|"]
    for name, figure in FIGURES.items():
        shown = f"{name}.NAME" if name in ("metric", "drop") else name
        rows.append(f"| `{shown}` | {figure.unit} | {_cell(figure.meaning)} |")
    yield "\n".join(rows)


def _table(
    model: type[pydantic.BaseModel], *, leave_out: str = "", absent: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name != leave_out:
            kind, meaning = _cell(words(field.annotation)), _cell(field.description or "")
            rows.append(f"| `{name}` | {kind} | {absent.get(name) or _default(field)} | {meaning} |")
    if len(rows) > 2:
        yield "\n".join(rows)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, pydantic.BaseModel):
        return "its defaults"
    if isinstance(value, tuple):
        value = list(value)
    shown = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else None
    return f"`{_cell(shown or (value if isinstance(value, str) and value else repr(value)))}`"


_PLAIN = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    type(None): "null",
    Path: "path",
}


def words(annotation: Any) -> str:
    """A type in the words that messages use."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is typing.Annotated:
        return words(arguments[0])
    if origin in (tuple, list, set, frozenset):
        return f"list of {words(arguments[0])}"
    if origin is dict:
        return f"mapping to {words(arguments[1])}"
    if annotation is Any:
        return "anything"
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return (
            "mapping, see its keys"
            if issubclass(annotation, Pass)
            else "mapping: " + ", ".join(annotation.model_fields)
        )
    if arguments:
        return " or ".join(words(argument) for argument in arguments)
    return str(getattr(annotation, "__name__", annotation))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {"recipe-reference.md": recipe_page, "passes.md": passes_page}


def write(folder: Path) -> None:
    """Write both pages."""
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")
        console.err(f"wrote {folder / name}")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
