"""GELU: one operator for x * Phi(x), however it is spelled.

Before: y = 0.5 * x * (1 + Erf(x / sqrt 2))                                   exact
        y = 0.5 * x * (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))        tanh approximation
        y = x * Sigmoid(1.702 * x)                                            sigmoid approximation
After:  y = Gelu(x), y = Gelu(x, approximate="tanh")         (ONNX Gelu, opset 20)
        y = com.microsoft.QuickGelu(x, alpha=1.702)          (ONNX Runtime; TensorRT fuses the plain form)

The factors may stand in any order and the constants as Mul or Div. Source: Hendrycks and Gimpel, 2016.

Leaves alone: other constants (the reason names them), and parts that are used elsewhere too.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from passes import matching as m
from passes.base import Pass, PassContext, PassResult
from passes.fuse._product import Factors, factors
from passes.rewriting import Rewriting, rewrite

PATTERNS = ("gelu", "gelu_tanh", "gelu_sigmoid")
CLOSE = 1e-3
"""Relative; sources write the constants with four digits and more."""


class FuseGelu(Pass):
    """Write GELU as one operator."""

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fuse every GELU of the main graph."""
        return rewrite(model, context, PATTERNS, _match)


def _match(rewriting: Rewriting) -> None:
    for erf in rewriting.nodes("Erf"):
        _halved(rewriting, "gelu", erf, _erf_argument(erf))
    for tanh in rewriting.nodes("Tanh"):
        _halved(rewriting, "gelu_tanh", tanh, _tanh_argument(tanh))
    for sigmoid in rewriting.nodes("Sigmoid"):
        _sigmoid(rewriting, sigmoid)


def _halved(rewriting: Rewriting, pattern: str, inner: ir.Node, x: ir.Value | str | None) -> None:
    """Finish 0.5 * x * (1 + inner(...)) around `inner`, whose argument gave `x` (or why not)."""
    add = m.only_user(inner.outputs[0])
    if add is None or add.op_type != "Add" or x is None:
        return
    if isinstance(x, str):
        rewriting.miss(pattern, inner, x)
        return
    one = m.scalar_operand(add)
    if one is None or one[1] != 1.0:
        return
    top = factors(add.outputs[0])
    if top is None or [value for value in top.values if value is not add.outputs[0]] != [x]:
        return
    if not math.isclose(top.number, 0.5, rel_tol=CLOSE):
        rewriting.miss(pattern, inner, f"the factor is {top.number:g}, needs 0.5")
        return
    draft = rewriting.draft(pattern, inner, least_opset=20)
    approximate = "tanh" if pattern == "gelu_tanh" else "none"
    draft.replace(top.output, draft.op("Gelu", [x], approximate=approximate))
    rewriting.propose(draft)


def _erf_argument(erf: ir.Node) -> ir.Value | str | None:
    if erf.inputs[0] is None:
        return None
    x, number = m.unscaled(erf.inputs[0])
    if not math.isclose(number, math.sqrt(0.5), rel_tol=CLOSE):
        return f"Erf's argument is scaled by {number:g}, needs {math.sqrt(0.5):g}"
    return x


def _tanh_argument(tanh: ir.Node) -> ir.Value | str | None:
    """x of sqrt(2 / pi) * (x + 0.044715 * x**3), or of sqrt(2 / pi) * x * (1 + 0.044715 * x**2)."""
    if tanh.inputs[0] is None:
        return None
    inner, number = m.unscaled(tanh.inputs[0])
    add = m.made_by(inner, "Add")
    if add is None:
        return _tanh_product(factors(tanh.inputs[0], upwards=True))
    if not math.isclose(number, math.sqrt(2 / math.pi), rel_tol=CLOSE):
        return f"Tanh's argument is scaled by {number:g}, needs {math.sqrt(2 / math.pi):g}"
    for x, cube in m.operands(add):
        if x is not None and cube is not None and _power(cube, x, 3, 0.044715):
            return x
    return None


def _tanh_product(product: Factors | None) -> ir.Value | str | None:
    if product is None or len(product.values) != 2:
        return None
    if not math.isclose(product.number, math.sqrt(2 / math.pi), rel_tol=CLOSE):
        return None
    for x, rest in (product.values, product.values[::-1]):
        add = m.made_by(rest, "Add")
        one = m.scalar_operand(add) if add is not None else None
        if one is not None and one[1] == 1.0 and _power(one[0], x, 2, 0.044715):
            return x
    return None


def _power(value: ir.Value, x: ir.Value, exponent: int, number: float) -> bool:
    """Whether `value` is number * x**exponent, as Pow or as products."""
    product = factors(value, upwards=True)
    if product is None or not math.isclose(product.number, number, rel_tol=CLOSE):
        return False
    total = 0.0
    for part in product.values:
        node = m.made_by(part, "Pow")
        if part is x:
            total += 1
        elif node is not None and node.inputs[0] is x and (power := m.scalar(node.inputs[1])) is not None:
            total += power
        else:
            return False
    return total == exponent


def _sigmoid(rewriting: Rewriting, sigmoid: ir.Node) -> None:
    if sigmoid.inputs[0] is None:
        return
    x, number = m.unscaled(sigmoid.inputs[0])
    mul = m.only_user(sigmoid.outputs[0])
    if mul is None or mul.op_type != "Mul" or x not in mul.inputs or number == 1.0:
        return
    if not math.isclose(number, 1.702, rel_tol=CLOSE):
        rewriting.miss("gelu_sigmoid", sigmoid, f"Sigmoid's argument is scaled by {number:g}, needs 1.702")
        return
    if rewriting.context.target.dialect != "onnxruntime":
        rewriting.note("gelu_sigmoid: TensorRT has no such operator and fuses the plain form.")
        return
    draft = rewriting.draft("gelu_sigmoid", sigmoid)
    draft.replace(mul.outputs[0], draft.op("QuickGelu", [x], domain="com.microsoft", alpha=number))
    rewriting.propose(draft)
