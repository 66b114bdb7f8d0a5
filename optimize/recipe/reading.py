"""A recipe file to a `Recipe`: fully checked, or one error that lists every fault.

A path in a recipe starts from the folder of the file that says it. `Recipe.base` is the folder of the file
that was loaded; a path that an extended recipe in another folder says is rewritten to start from there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from optimize.recipe.cross_checks import check_evaluation, check_gates, check_passes
from optimize.recipe.engine_section import ENGINE, TARGET, read_engine, read_target
from optimize.recipe.explaining import validate
from optimize.recipe.faults import Faults, did_you_mean
from optimize.recipe.gate_list import GATES, flatten, read_gates
from optimize.recipe.merging import BASE, EXTENDS, compose
from optimize.recipe.model import (
    DataSpec,
    EvaluateSpec,
    ExportedProgramSourceSpec,
    Heading,
    HuggingFaceSourceSpec,
    OnnxSourceSpec,
    Recipe,
    SourceSpec,
    TorchSourceSpec,
)
from optimize.recipe.nodes import Node, Place, node_of
from optimize.recipe.pass_list import PASSES, read_passes
from optimize.recipe.rebasing import rebase
from optimize.recipe.variables import VARIABLES, substitute

SOURCES: dict[str, type[pydantic.BaseModel]] = {
    "torch": TorchSourceSpec,
    "exported_program": ExportedProgramSourceSpec,
    "huggingface": HuggingFaceSourceSpec,
    "onnx": OnnxSourceSpec,
}
SECTIONS = ("source", TARGET, PASSES, ENGINE, "calibration", "evaluate", GATES)


def load(path: Path, *, variables: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: The YAML file.
        variables: Values from the command line, as text, that win over the recipe's own `variables:`.

    Raises:
        UsageError: When the file cannot be read.
        RecipeError: With every fault: file, line, column, key, what is wrong and what was probably meant.
    """
    faults = Faults()
    root = substitute(compose(path, faults), dict(variables or {}), faults)
    return _read(root, _name_from(path), faults)


def _name_from(path: Path) -> str:
    """A name for a recipe that gives none: the file's, with what a name may not hold as '-'."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.name.partition(".")[0]).strip("-") or "recipe"


def from_data(data: Mapping[str, Any], *, base: Path, name: str = "model") -> Recipe:
    """A recipe that was put together by a program, checked just as a file is.

    Args:
        data: Keys as in a recipe file, without `extends` and `variables`.
        base: Folder that relative paths start from.
        name: The recipe's name when `data` gives none.

    Raises:
        RecipeError: With every fault.
    """
    faults = Faults()
    root = node_of(dict(data), Place(folder=base))
    if GATES in root.mapping:
        root = Node({**root.mapping, GATES: flatten(root.mapping[GATES], faults)}, root.place, root.keys)
    return _read(root, name, faults)


def _read(root: Node, name: str, faults: Faults) -> Recipe:
    base = Path(root.place.folder).absolute()
    sections = root.mapping
    _check_keys(root, faults)

    source = _read_source(sections.get("source"), root.place, base, faults)
    engine = read_engine(sections.get(ENGINE), base, faults)
    target_name, target = read_target(sections.get(TARGET), engine, root.place, faults)
    passes = read_passes(sections.get(PASSES), base, faults)
    calibration = _read_data(sections.get("calibration"), base, faults)
    evaluate_node = sections.get("evaluate")
    evaluate = _read_evaluate(evaluate_node, base, faults)
    gates = read_gates(sections.get(GATES), faults)
    heading = _read_heading(root, name, base, faults)

    check_passes(passes, calibration, target, faults)
    if evaluate is not None:
        previous = heading.previous if heading is not None else None
        check_gates(sections.get(GATES), gates, evaluate, previous, faults)
        check_evaluation(evaluate_node, evaluate, source, faults)
    faults.raise_any()
    assert heading is not None
    assert source is not None
    assert evaluate is not None
    return Recipe(
        **heading.model_dump(),
        source=source,
        target=target_name,
        passes=tuple(found.spec for found in passes),
        engine=engine,
        calibration=calibration,
        evaluate=evaluate,
        gates=gates,
        base=base,
    )


def _check_keys(root: Node, faults: Faults) -> None:
    known = (*Heading.model_fields, *SECTIONS, EXTENDS, VARIABLES, BASE)
    for key in root.mapping:
        if key not in (*Heading.model_fields, *SECTIONS):
            faults.add((key,), f"unknown key{did_you_mean(key, known)}", root.keys.get(key, root.place))


def _read_source(node: Node | None, nowhere: Place, base: Path, faults: Faults) -> SourceSpec | None:
    if node is None:
        kinds = ", ".join(SOURCES)
        message = f"missing; say where the model comes from (kind: {kinds})"
        faults.add(("source",), message, nowhere)
        return None
    if not isinstance(node.value, dict):
        faults.add(("source",), f"expected a mapping with a kind, got {node.kind()}", node.place)
        return None
    kind = node.value.get("kind")
    model = SOURCES.get(str(kind.value)) if kind is not None else None
    if kind is None:
        faults.add(("source", "kind"), f"missing{did_you_mean('', SOURCES)}", node.place)
    elif model is None:
        message = f"no source is called {kind.kind()}{did_you_mean(str(kind.value), SOURCES)}"
        faults.add(("source", "kind"), message, kind.place)
    if model is None:
        return None
    found: Any = validate(model, rebase(model, node, base), ("source",), faults)
    return found  # type: ignore[no-any-return]


def _read_data(node: Node | None, base: Path, faults: Faults) -> DataSpec | None:
    if node is None or node.value is None:
        return None
    return validate(DataSpec, rebase(DataSpec, node, base), ("calibration",), faults)


def _read_evaluate(node: Node | None, base: Path, faults: Faults) -> EvaluateSpec | None:
    if node is None:
        return EvaluateSpec()
    return validate(EvaluateSpec, rebase(EvaluateSpec, node, base), ("evaluate",), faults)


def _read_heading(root: Node, name: str, base: Path, faults: Faults) -> Heading | None:
    entries = {key: node for key, node in root.mapping.items() if key in Heading.model_fields}
    entries.setdefault("name", Node(name, root.place))
    return validate(Heading, rebase(Heading, Node(entries, root.place, root.keys), base), (), faults)
