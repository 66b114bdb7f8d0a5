"""Where a node came from: the exporter's notes on it, read in one place."""

from __future__ import annotations

import ast
import difflib
import glob
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

import onnx_ir as ir

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""Key under which torch's exporter keeps the chain of module names, outermost first, operator last."""

MODULE = "pkg.model_optimize.module"
"""Key under which this project keeps a module name where the exporter left none."""

BY_OUTPUT = "output:"
"""Begins a pattern that is about the name of a node's first output, which no other node has."""

SKIPS_NOTHING = "skip: "
"""Begins the note on a pattern that matches nothing."""


def module_of(node: ir.Node) -> str:
    """The source module a node came from, "encoder.layer.0.attention.self.query", or "" when unknown."""
    kept = node.metadata_props.get(MODULE)
    if kept is not None:
        return kept
    scopes = node.metadata_props.get(NAME_SCOPES)
    if not scopes:
        return ""
    try:
        chain = ast.literal_eval(scopes)
    except (SyntaxError, ValueError):
        return ""
    if not isinstance(chain, list) or len(chain) < 2:
        return ""
    return str(chain[-2])


def carry_module(source: ir.Node, *replacements: ir.Node) -> None:
    """Give replacement nodes the source node's notes, so that they can still be traced to their module."""
    for replacement in replacements:
        for key, value in source.metadata_props.items():
            replacement.metadata_props.setdefault(key, value)


def matches(node: ir.Node, patterns: Iterable[str]) -> bool:
    """Whether a node is named by any of the shell-style patterns: node name, module or operator type.

    A pattern that names a module also covers what lies below it: "encoder" matches "encoder.layer.0". "output:h"
    matches the one node whose first output is h.
    """
    module = module_of(node)
    for pattern in patterns:
        if pattern.startswith(BY_OUTPUT):
            if fnmatchcase(output_of(node), pattern.removeprefix(BY_OUTPUT)):
                return True
            continue
        if fnmatchcase(node.name or "", pattern) or fnmatchcase(node.op_type, pattern):
            return True
        if module and (fnmatchcase(module, pattern) or fnmatchcase(module, pattern + ".*")):
            return True
    return False


def unmatched(model: ir.Model, patterns: Iterable[str]) -> Iterator[str]:
    """A sentence per pattern that no node of the model matches, in its sub-graphs and local functions neither."""
    nodes = [node for graph in (*model.graphs(), *model.functions.values()) for node in graph]
    modules, known = {module_of(node) for node in nodes}, {node.name or "" for node in nodes}
    for pattern in dict.fromkeys(patterns):
        if any(matches(node, (pattern,)) for node in nodes):
            continue
        near = difflib.get_close_matches(pattern, sorted((modules | known) - {""}), n=1)
        hint = "".join(f"; did you mean '{name}'?" for name in near) or "."
        yield f"{SKIPS_NOTHING}'{pattern}' matches no node, module or operator at this step{hint}"


def output_of(node: ir.Node) -> str:
    """The name of a node's first output."""
    return (node.outputs[0].name if node.outputs else None) or ""


def selector(node: ir.Node, others: Iterable[ir.Node]) -> str:
    """A pattern that matches `node` and none of `others`: its module, else its name, else its output."""
    rest = tuple(others)
    for text in (module_of(node), node.name):
        pattern = glob.escape(text or "")
        if pattern and not any(matches(other, (pattern,)) for other in rest):
            return pattern
    return by_output(output_of(node))


def name_of(node: ir.Node) -> str:
    """A node's name; where it has none the pattern for its first output, which `skip` takes too."""
    return node.name or by_output(output_of(node))


def label_of(node: ir.Node) -> str:
    """What reports and recipes call a layer: its module, else `name_of`."""
    return module_of(node) or name_of(node)


def by_output(name: str) -> str:
    """The pattern for the node whose first output has exactly this name."""
    return BY_OUTPUT + glob.escape(name)
