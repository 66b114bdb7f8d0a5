"""Where a node came from: the exporter's notes on it, read in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from fnmatch import fnmatchcase

import onnx_ir as ir

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""Key under which torch's exporter keeps the chain of module names, outermost first, operator last."""

MODULE = "pkg.model_optimize.module"
"""Key under which this project keeps a module name where the exporter left none."""


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

    A pattern that names a module also covers what lies below it: "encoder" matches "encoder.layer.0".
    """
    module = module_of(node)
    for pattern in patterns:
        if fnmatchcase(node.name or "", pattern) or fnmatchcase(node.op_type, pattern):
            return True
        if module and (fnmatchcase(module, pattern) or fnmatchcase(module, pattern + ".*")):
            return True
    return False
