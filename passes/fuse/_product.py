"""Products of several values and numbers, read as a whole, whatever the order of the multiplications."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from passes import matching as m

LIMIT = 6
"""Multiplications followed in one direction; patterns here need three."""


@dataclasses.dataclass(frozen=True)
class Factors:
    """A product.

    Attributes:
        output: The value that holds it.
        values: Its factors that are no constants.
        number: The product of its constants.
    """

    output: ir.Value
    values: tuple[ir.Value, ...]
    number: float


def factors(value: ir.Value, *, upwards: bool = False) -> Factors | None:
    """The product that `value` takes part in (followed downwards), or the product that it is (`upwards`)."""
    output = value
    if not upwards:
        for _ in range(LIMIT):
            user = m.only_user(output)
            if user is None or user.domain or user.op_type not in ("Mul", "Div"):
                break
            if user.op_type == "Div" and (user.inputs[0] is not output or m.scalar(user.inputs[1]) is None):
                break
            output = user.outputs[0]
        if output is value:
            return None
    values: list[ir.Value] = []
    number = 1.0
    stack: list[tuple[ir.Value, int]] = [(output, 0)]
    while stack:
        part, depth = stack.pop()
        fixed = m.scalar(part)
        if fixed is not None:
            number *= fixed
            continue
        node = m.made_by(part, "Mul", "Div")
        inner = part is output or m.is_private(part)
        if node is None or (part is value and not upwards) or not inner or depth > LIMIT:
            values.append(part)
            continue
        left, right = node.inputs
        if left is None or right is None:
            return None
        if node.op_type == "Div":
            divisor = m.scalar(right)
            if not divisor:
                values.append(part)
                continue
            number /= divisor
            stack.append((left, depth + 1))
        else:
            stack += [(right, depth + 1), (left, depth + 1)]
    return Factors(output, tuple(values), number)
