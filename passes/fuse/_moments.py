"""Means of squares and their roots, as normalizations spell them."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from passes import matching as m


@dataclasses.dataclass(frozen=True)
class Root:
    """sqrt(mean + epsilon), or one over it.

    Attributes:
        value: The value that holds it.
        epsilon: What was added.
        inverted: Whether it is one over the root.
    """

    value: ir.Value
    epsilon: float
    inverted: bool

    def divides(self, x: ir.Value) -> ir.Value | None:
        """x over the root, if that is what the root is used for and nothing else."""
        user = m.only_user(self.value)
        if user is None:
            return None
        if self.inverted and user.op_type == "Mul" and x in user.inputs:
            return user.outputs[0]
        if not self.inverted and user.op_type == "Div" and user.inputs[0] is x:
            return user.outputs[0]
        return None


def mean_square(mean: ir.Node) -> ir.Value | None:
    """x, if the node is the mean of x squared; the square may be Pow, Mul, or a Cast of either."""
    square = m.made_by(m.through(mean.inputs[0], "Identity"), "Pow", "Mul")
    if square is None or not m.is_private(square.outputs[0]) or not m.is_private(mean.outputs[0]):
        return None
    if square.op_type == "Pow":
        return square.inputs[0] if m.scalar(square.inputs[1]) == 2.0 else None
    return square.inputs[0] if square.inputs[0] is square.inputs[1] else None


def root(mean: ir.Value) -> Root | None:
    """The root taken of `mean` plus a small number, or one over it; None when that is not what follows."""
    add = m.only_user(mean)
    found = m.scalar_operand(add) if add is not None and add.op_type == "Add" else None
    if add is None or found is None or found[0] is not mean or found[1] < 0:
        return None
    sqrt = m.only_user(add.outputs[0])
    if sqrt is None:
        return None
    if sqrt.op_type == "Pow":
        power = m.scalar(sqrt.inputs[1])
        if power not in (0.5, -0.5) or sqrt.inputs[0] is not add.outputs[0]:
            return None
        return Root(sqrt.outputs[0], found[1], power == -0.5)
    if sqrt.op_type != "Sqrt":
        return None
    after = m.only_user(sqrt.outputs[0])
    if after is not None and after.op_type == "Reciprocal":
        return Root(after.outputs[0], found[1], True)
    if after is not None and after.op_type == "Div" and m.scalar(after.inputs[0]) == 1.0:
        return Root(after.outputs[0], found[1], True)
    return Root(sqrt.outputs[0], found[1], False)
