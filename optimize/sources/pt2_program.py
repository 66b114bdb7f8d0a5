"""What the program inside a `.pt2` file may say, looked at before torch reads it.

torch writes names from the file into Python source that it executes (arguments, attributes, string constants),
executes the file's guards before each call, imports modules that tree structures name, and hands shape expressions
to SymPy, which evaluates them. So names may hold nothing that makes Python call anything, guards compare sizes, and
expressions hold only what torch itself writes, of a bounded size: SymPy multiplies polynomials out and computes
powers of numbers, however long that takes.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator
from typing import Any

LONGEST = 10_000
"""Characters of a shape expression."""

MOST_TERMS = 64
"""Terms of an expression once it is multiplied out; with as many SymPy takes up to 5 s."""

MOST_TERMS_IN_ALL = 10_000
"""Terms of all different expressions of a program."""

MOST_POWERS = 64
"""Product of the exponents in an expression."""

_TREES = ("in_spec", "out_spec")
_ACTIVE = frozenset("'\"`\\()=;\n\r")
"""Without these a text that stands in Python source calls, assigns and ends nothing."""

_OPERATORS = (
    "torch.ops.aten.", "torch.ops.prims.", "torch.ops.higher_order.", "torch.ops.quantized_decomposed.",
    "torch.ops.torchao.", "torch.ops.torchvision.", "torch.sym_", "torch._C.", "torch.amp.", "torch._functorch.",
    "torch.fx.experimental.", "torch.autograd.", "_operator.", "math.",
)  # fmt: skip
_READS_FILES = "torch.ops.aten.from_file"

_FUNCTIONS = frozenset({
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Abs", "And", "Or", "Not",
    "Equality", "Unequality", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "StrictLessThan", "StrictGreaterThan",
    "LessThan", "GreaterThan", "Piecewise", "ExprCondPair", "FloorDiv", "ModularIndexing", "Where", "PythonMod",
    "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow",
    "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt",
    "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
})  # fmt: skip
"""SymPy's classes that torch prints, and torch's own."""

_FRACTION = re.compile(r"-?\d{1,20}(\.\d{0,40})?(e[+-]?\d{1,3})?", re.ASCII)
"""What stands in Float('0.5', precision=53)."""

_OPAQUE = ("OpaqueUnaryFn_", "BitwiseFn_")
_SIZES = frozenset({"size", "stride", "storage_offset", "dim", "ndim"})
_ROUNDINGS = frozenset({"floor", "ceil", "trunc", "sqrt", "isnan", "inf"})
_PRODUCTS = frozenset({"Mul"})
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift", "RShift"})
_CALLED = (_FUNCTIONS - _POWERS) | {"max", "min", "abs", "int", "float", "bool", "round"}
"""What guards may call beside sizes."""

_ARITHMETIC = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp,
    ast.Compare, ast.BoolOp, ast.operator, ast.unaryop, ast.cmpop, ast.boolop,
)  # fmt: skip


def fault(program: Any) -> str | None:
    """Why a program, JSON as torch.export.save writes it, is not to be loaded: the end of a sentence, or None."""
    seen: dict[str, int] = {}
    for key, text in _texts(program):
        if key == "expr_str":
            if text not in seen:
                try:
                    seen[text] = terms(text)
                except ValueError as error:
                    return f"holds a shape expression that {error}: {_short(text)}"
            if sum(seen.values()) > MOST_TERMS_IN_ALL:
                return f"holds shape expressions of more than {MOST_TERMS_IN_ALL:,} terms in all"
        elif key == "guards_code":
            if not is_guard(text):
                return f"holds a guard that does more than compare sizes: {_short(text)}"
        elif key == "target" and text.startswith("torch.ops.") and _is_foreign(text):
            return f"calls an operator that may do anything: {_short(text)}"
        elif _ACTIVE.intersection(text):
            return f"holds a name with Python code in it: {_short(text)}"
    return None


def is_guard(text: str) -> bool:
    """Whether a guard only compares sizes of inputs: "L['x'].size()[1] <= 512"."""
    if len(text) > LONGEST:
        return False
    try:
        parts = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_compares(part) for part in parts) and sum(isinstance(part, ast.Pow) for part in parts) <= 2


def _compares(part: ast.AST) -> bool:
    if isinstance(part, ast.Call):
        called = part.func
        return isinstance(called, ast.Attribute) or (isinstance(called, ast.Name) and called.id in _CALLED)
    if isinstance(part, ast.Attribute):
        is_rounding = isinstance(part.value, ast.Name) and part.value.id == "math" and part.attr in _ROUNDINGS
        return is_rounding or part.attr in _SIZES
    if isinstance(part, ast.Name):
        return part.id in ("L", "math", "inf") or part.id in _CALLED
    if isinstance(part, ast.Constant):
        return not (isinstance(part.value, str) and _ACTIVE.intersection(part.value)) and _is_number_or_text(part)
    if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Pow):
        exponent = _whole(part.right)
        return exponent is not None and abs(exponent) <= 8
    return isinstance(part, (*_ARITHMETIC, ast.Subscript)) and not isinstance(part, ast.LShift)


def _is_number_or_text(part: ast.Constant) -> bool:
    return not isinstance(part.value, int) or abs(part.value) <= 2**64


def terms(text: str) -> int:
    """How many terms a shape expression has once it is multiplied out.

    Raises:
        ValueError: When it is no arithmetic of torch's own functions, or too large, as the end of a sentence.
    """
    if len(text) > LONGEST:
        raise ValueError(f"has more than {LONGEST:,} characters")
    try:
        tree = ast.parse(text, mode="eval")
        for part in ast.walk(tree):
            if not _is_arithmetic(part):
                raise ValueError("is no arithmetic")
        powers: list[int] = []
        found = _terms(tree.body, powers)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("is no arithmetic") from None
    if found > MOST_TERMS or math.prod(powers) > MOST_POWERS:
        raise ValueError("is too large to be evaluated")
    return found


def _texts(program: Any) -> Iterator[tuple[str, str]]:
    """Every text in a program that torch puts to use, with the key it stands under; keys are texts too.

    Left out: what nodes say of their origin (`metadata`), which torch keeps aside, and texts that are arguments of
    nodes, which it writes as literals.
    """
    waiting: list[tuple[str, Any, bool]] = [("", program, False)]
    while waiting:
        key, part, is_argument = waiting.pop()
        if isinstance(part, str):
            if (key in _TREES or key == "context") and part[:1] in ("[", "{", '"'):
                waiting.append(("context", json.loads(part), False))
            elif not (is_argument and key == "as_string"):
                yield key, part
        elif isinstance(part, list):
            waiting += [(key, item, is_argument) for item in part]
        elif isinstance(part, dict):
            if "__enum__" in part or part.get("type") == "collections.defaultdict":
                yield "", "import(a module that a tree structure names)"
            for name, item in part.items():
                yield "", name
                if name != "metadata":
                    waiting.append((name, item, (is_argument or name == "nodes") and name != "as_graph"))


def _is_foreign(target: str) -> bool:
    return not target.startswith(_OPERATORS) or target.startswith(_READS_FILES)


def _is_arithmetic(part: ast.AST) -> bool:
    """Whether a part of an expression is a name, a number, arithmetic or one of the functions."""
    if isinstance(part, ast.Call):
        name = part.func.id if isinstance(part.func, ast.Name) else ""
        is_plain = name != "Float" or (len(part.args) == 1 and all(_is_precision(item) for item in part.keywords))
        return is_plain and (name in _FUNCTIONS or name.startswith(_OPAQUE))
    if isinstance(part, ast.Constant):
        if isinstance(part.value, str):
            return part.value.isidentifier() or _FRACTION.fullmatch(part.value) is not None
        return isinstance(part.value, float) or (isinstance(part.value, int) and abs(part.value) <= 2**64)
    if isinstance(part, ast.Name):
        return not part.id.startswith("_")
    return isinstance(part, _ARITHMETIC)


def _is_precision(part: ast.keyword) -> bool:
    return part.arg == "precision" and isinstance(part.value, ast.Constant) and part.value.value in range(65)


def _terms(part: ast.expr, powers: list[int]) -> int:
    if isinstance(part, ast.UnaryOp):
        return _terms(part.operand, powers)
    if isinstance(part, ast.BinOp):
        if isinstance(part.op, ast.Pow | ast.LShift | ast.RShift):
            return _power(part.left, part.right, powers)
        sides = _terms(part.left, powers), _terms(part.right, powers)
        return _bounded(math.prod(sides) if isinstance(part.op, ast.Mult | ast.Div) else sum(sides))
    if isinstance(part, ast.Call):
        name = part.func.id if isinstance(part.func, ast.Name) else ""
        if name in ("Symbol", "Integer", "Rational", "Float"):
            return 1
        if name in _POWERS and len(part.args) == 2:
            return _power(part.args[0], part.args[1], powers)
        inner = [_terms(item, powers) for item in part.args]
        return _bounded(math.prod(inner) if name in _PRODUCTS else max(1, sum(inner)))
    if isinstance(part, ast.Compare):
        return _bounded(sum(_terms(item, powers) for item in (part.left, *part.comparators)))
    if isinstance(part, ast.BoolOp):
        return _bounded(sum(_terms(item, powers) for item in part.values))
    return 1


def _power(base: ast.expr, exponent: ast.expr, powers: list[int]) -> int:
    number = _whole(exponent)
    if number is None:
        if isinstance(exponent, ast.Name) or (isinstance(exponent, ast.Call) and _called(exponent) == "Symbol"):
            return _terms(base, powers)
        raise ValueError("raises to a power that is no small number")
    if abs(number) > MOST_POWERS:
        raise ValueError("raises to a power that is no small number")
    powers.append(max(1, abs(number)))
    return _bounded(_terms(base, powers) ** max(1, abs(number)))


def _whole(part: ast.expr) -> int | None:
    """2, -1, Integer(2), Rational(1, 2) or Float('0.5'), the last two rounded away from zero."""
    if isinstance(part, ast.Call) and _called(part) == "Float":
        (given,) = part.args
        text = given.value if isinstance(given, ast.Constant) else None
        value = abs(float(text)) if isinstance(text, str) and _FRACTION.fullmatch(text) else math.inf
        return math.ceil(value) if value <= MOST_POWERS else None
    if isinstance(part, ast.Call) and _called(part) in ("Integer", "Rational") and part.args:
        return _whole(part.args[0])
    if isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.USub):
        inner = _whole(part.operand)
        return None if inner is None else -inner
    return part.value if isinstance(part, ast.Constant) and isinstance(part.value, int) else None


def _called(part: ast.Call) -> str:
    return part.func.id if isinstance(part.func, ast.Name) else ""


def _bounded(count: int) -> int:
    """A count that stays small to compute with; what is beyond the bound stays so."""
    return min(count, MOST_TERMS + 1)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"
