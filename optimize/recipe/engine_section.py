"""`target:` and `engine:`: what the run is for, checked against the engine's own options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import UsageError
from optimize.recipe.explaining import validate
from optimize.recipe.faults import Faults, did_you_mean
from optimize.recipe.nodes import Node, Place
from optimize.recipe.rebasing import rebase

if TYPE_CHECKING:
    from passes.target import Target

ENGINE = "engine"
TARGET = "target"
DEFAULT_KIND = "onnxruntime"
DEFAULT_TARGET = "cpu"


def read_engine(node: Node | None, base: Path, faults: Faults) -> dict[str, Any]:
    """The engine's kind with every option written out; empty when it is at fault.

    A bare name (`engine: onnxruntime`) is the engine with its defaults.
    """
    from optimize.engines import registry

    if node is None or node.value is None:
        return {"kind": DEFAULT_KIND, **_dump(registry.options_class(DEFAULT_KIND)())}
    node = in_full(node)
    if not isinstance(node.value, dict):
        faults.add((ENGINE,), f"expected an engine's name or its options, got {node.kind()}", node.place)
        return {}
    named = node.value.get("kind")
    if named is None:
        faults.add((ENGINE, "kind"), f"missing{did_you_mean('', registry.kinds())}", node.place)
        return {}
    kind = str(named.value)
    if kind not in registry.kinds():
        hint = did_you_mean(kind, registry.kinds())
        if kind == "torch":
            hint = "; PyTorch runs the original (evaluate.throughput.contenders), an engine runs the result"
        faults.add((ENGINE, "kind"), f"no engine is called {named.kind()}{hint}", named.place)
        return {}
    model = registry.options_class(kind)
    mapping = dict(node.value) if "kind" in model.model_fields else _without_kind(node.value)
    section = Node(mapping, node.place, node.keys)
    options = validate(model, rebase(model, section, base), (ENGINE,), faults)
    return {} if options is None else {"kind": kind, **_dump(options)}


def in_full(node: Node) -> Node:
    """A bare engine's name as the mapping it stands for, so that a recipe may add options to its base's."""
    if not isinstance(node.value, str) or node.value.startswith("${"):
        return node
    return Node({"kind": node}, node.place, {"kind": node.place})


def _without_kind(entries: dict[str, Node]) -> dict[str, Node]:
    return {key: item for key, item in entries.items() if key != "kind"}


def _dump(options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.model_dump(mode="json").items() if key != "kind"}


def read_target(
    node: Node | None, engine: dict[str, Any], nowhere: Place, faults: Faults
) -> tuple[str, Target | None]:
    """The target's name, and its facts for this engine when both are sound."""
    from optimize.targets import loading

    if node is None or node.value is None:
        node = Node(DEFAULT_TARGET, nowhere)
    name = node.value
    if not isinstance(name, str):
        faults.add((TARGET,), f"expected a target's name, got {node.kind()}", node.place)
        return DEFAULT_TARGET, None
    if name not in loading.names():
        message = f"no target is called '{name}'{did_you_mean(name, loading.names())}"
        faults.add((TARGET,), message, node.place)
    elif engine:
        try:
            return name, loading.load(name, str(engine["kind"]))
        except UsageError as error:
            faults.add((TARGET,), str(error), node.place)
    return name, None
