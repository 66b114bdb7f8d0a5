"""Notes that name the exporting machine, taken out.

Before: node.metadata_props = {"pkg.torch.onnx.stack_trace": "File /home/ann/model.py …",
                               "pkg.torch.onnx.name_scopes": "['', 'encoder', 'linear']"}
After:  node.metadata_props = {"pkg.torch.onnx.name_scopes": "['', 'encoder', 'linear']"}

A stack trace holds absolute file names: it tells who exported the model and where, and makes the same model
differ from machine to machine. Doc strings and other notes go when they hold an absolute path.

Leaves alone: notes that passes read (module names and classes), and anything without a path in it.
"""

from __future__ import annotations

import re
from typing import Protocol

import onnx_ir as ir
import pydantic

from passes.base import Pass, PassContext, PassResult, Pattern
from passes.clean._scopes import Scope, scopes

STACK_TRACE = "pkg.torch.onnx.stack_trace"

_ABSOLUTE_PATH = re.compile(r"""(?:^|[\s"'=(\[,:])(?:/[^\s/"':,]+/[^\s"':,]|[A-Za-z]:[\\/][^\s"':,])""")
"""At least two parts, so that a module named "/x" or a fraction "1/2" does not count."""


class _Noted(Protocol):
    """What carries notes: the model, a graph, a function, a node, a value."""

    doc_string: str | None

    @property
    def metadata_props(self) -> dict[str, str]: ...


class StripMetadata(Pass):
    """Take out stack traces, and notes and doc strings that hold an absolute path."""

    keys: tuple[str, ...] = pydantic.Field(
        default=(STACK_TRACE,), description="Notes taken out whatever they hold."
    )

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Clean the notes of the model, its graphs, functions, nodes and values."""
        notes = doc_strings = 0
        for item in [model, *(found for scope in scopes(model) for found in _noted(scope))]:
            for key, text in list(item.metadata_props.items()):
                if key in self.keys or _ABSOLUTE_PATH.search(text):
                    del item.metadata_props[key]
                    notes += 1
            if item.doc_string and _ABSOLUTE_PATH.search(item.doc_string):
                item.doc_string = None
                doc_strings += 1
        return PassResult(patterns=(Pattern("note", notes), Pattern("doc_string", doc_strings)))


def _noted(scope: Scope) -> list[_Noted]:
    """A graph and everything in it that carries notes."""
    values = [*scope.inputs, *(scope.initializers.values() if isinstance(scope, ir.Graph) else ())]
    for node in scope:
        values += node.outputs
    return [scope, *scope, *values]
