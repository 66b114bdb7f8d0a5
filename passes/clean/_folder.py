"""onnxscript's constant folding, with our limits, and with each node's notes handed on.

In a file of its own because onnxscript takes a while to import, and reading a recipe should not wait for it.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.optimizer import _constant_folding as folding

from passes.clean._scopes import is_random
from passes.names import carry_module

SEQUENCES = ("SplitToSequence", "SequenceAt", "ConcatFromSequence")
"""The library writes these as Split, Squeeze and Unsqueeze with inputs that they have since opset 13."""


class Folder(folding.FoldConstantsPass):  # type: ignore[misc]
    """Folds constants; call it with a model.

    Args:
        limit_bytes: Most bytes of constants that one operator may read.
        limit_elements: Most elements of a result.
    """

    def __init__(self, limit_bytes: int, limit_elements: int) -> None:
        super().__init__(
            shape_inference=True,
            input_size_limit=limit_bytes,  # elements; the byte limit in `is_allowed` is tighter
            output_size_limit=limit_elements,
            should_fold=self.is_allowed,
        )
        self.limit_bytes = limit_bytes
        self.replaced = 0
        self.too_large: dict[ir.Node, int] = {}

    def is_allowed(self, node: ir.Node) -> bool | None:
        """False to leave a node alone, None for the library's own rules."""
        size = sum(value.const_value.nbytes for value in node.inputs if value is not None and value.const_value)
        if size > self.limit_bytes:
            self.too_large[node] = size
            return False
        return False if is_random(node) else None

    def process_node(self, node: ir.Node, is_function: bool) -> folding.Replacement | None:
        """Look at one node; those that take attributes from a function's call are not constant."""
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            return None
        if node.op_type in SEQUENCES and self._opset_imports.get("", 1) < 13:
            return None
        return super().process_node(node, is_function)

    def replace_node(self, node: ir.Node, replacement: folding.Replacement, root: ir.Graph | ir.Function) -> None:
        """Replace one node; the new ones keep its source module."""
        carry_module(node, *replacement.new_nodes)
        self.replaced += 1
        super().replace_node(node, replacement, root)
