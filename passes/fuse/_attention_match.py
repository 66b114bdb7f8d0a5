"""Recognising scaled dot-product attention around a Softmax, in whatever spelling."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from passes import matching as m

HEADS_FIRST = (0, 2, 1, 3)
"""(batch, tokens, heads, head_dim) to (batch, heads, tokens, head_dim), and back."""

MASKED = -1e4
"""A constant at or below this means "do not attend"."""


class Mismatch(Exception):
    """Looks like attention and is not; the message says why, both sides shown."""


@dataclasses.dataclass(frozen=True)
class Mask:
    """One term added to the scores.

    Attributes:
        value: Additive mask or bias, or a boolean that says where to attend.
        kept_where: None for an additive value; else which truth value of `value` keeps a score.
        low: What stands in for a masked score.
    """

    value: ir.Value
    kept_where: bool | None = None
    low: ir.Value | None = None


@dataclasses.dataclass(frozen=True)
class Match:
    """An attention found in a graph. Without an axis of heads, (batch, tokens, head_dim), it has one head.

    Attributes:
        softmax: The node in its middle.
        query: (batch, heads, tokens, head_dim).
        key: (batch, kv_heads, keys, head_dim), or (batch, heads, head_dim, keys) if `key_is_transposed`.
        value: (batch, kv_heads, keys, value_dim).
        output: (batch, heads, tokens, value_dim).
        scale: What query times key is multiplied with.
        masks: Terms of the mask.
        softcap: Scores are capped by softcap * tanh(scores / softcap); 0 means not.
        in_float32: Whether scores are widened to float32 around the softmax.
        key_is_transposed: Whether `key` still has to be turned.
        heads_last: Whether `key` is (batch, keys, heads, head_dim).
        guard: The node that replaces NaN by zero after the softmax, if any.
        causal: Whether each query attends to the keys up to its own place; then `masks` is empty.
    """

    softmax: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    output: ir.Value
    scale: float
    masks: tuple[Mask, ...]
    softcap: float
    in_float32: bool
    key_is_transposed: bool
    heads_last: bool
    guard: ir.Node | None
    causal: bool = False

    @property
    def rank(self) -> int:
        """4, or 3 without heads."""
        return m.rank(self.query) or 4

    @property
    def tokens_axis(self) -> int:
        """Where the query has its tokens."""
        return self.rank - 2


def match(softmax: ir.Node) -> Match | None:
    """The attention around `softmax`, or None when this softmax has nothing to do with one.

    Raises:
        Mismatch: When it looks like attention but cannot be written as one.
    """
    product, widened_after, guard = _product(softmax)
    scores = _Scores(softmax.inputs[0])
    if scores.matmul is None or m.is_constant(scores.matmul.inputs[1]):
        return None
    if product is None:
        if any(node.op_type in ("MatMul", "Where", "Cast", "Dropout") for node in m.users(softmax.outputs[0])):
            raise Mismatch("the attention weights behind the softmax are used elsewhere too")
        return None
    last = (m.rank(softmax.inputs[0]) or 4) - 1
    axis = m.attribute(softmax, "axis", -1)
    if axis not in (-1, last):
        raise Mismatch(f"Softmax axis is {axis}, needs last")
    if scores.problem:
        raise Mismatch(scores.problem)
    query, key_transposed = scores.matmul.inputs
    value, output = product.inputs[1], product.outputs[0]
    if query is None or key_transposed is None or value is None:
        return None
    ranks = tuple(map(m.rank, (query, key_transposed, value)))
    if ranks not in ((4, 4, 4), (3, 3, 3)):
        raise Mismatch(
            f"query, key and value have ranks {', '.join(map(str, ranks))}, need 4 (batch, heads, tokens, head_dim)"
            " or 3 (batch, tokens, head_dim)"
        )
    query, query_scale = m.unscaled(query)
    key, key_scale, key_is_transposed, heads_last = _key(key_transposed)
    if not key_is_transposed and not heads_last:
        shared_key, shared_value = ungrouped(key), ungrouped(value)
        if m.static(shared_key, 1) == m.static(shared_value, 1) and m.static(shared_key, 1) is not None:
            key, value = shared_key, shared_value
    scale = scores.scale * query_scale * key_scale
    if not scale > 0:
        raise Mismatch(f"scale is {scale:g}, needs to be positive")
    return Match(
        softmax=softmax,
        query=query,
        key=key,
        value=value,
        output=output,
        scale=scale,
        masks=tuple(scores.masks),
        softcap=scores.softcap,
        in_float32=widened_after and scores.widened,
        key_is_transposed=key_is_transposed,
        heads_last=heads_last,
        guard=guard,
    )


def ungrouped(value: ir.Value) -> ir.Value:
    """(batch, kv_heads, keys, head_dim) before each head was repeated for the query heads of its group."""
    reshape = m.made_by(value, "Reshape")
    expand = m.made_by(reshape.inputs[0], "Expand", "Tile") if reshape is not None else None
    if expand is None or m.rank(value) != 4 or m.rank(expand.outputs[0]) != 5:
        return value
    grown = expand.inputs[0]
    unsqueeze = m.made_by(grown, "Unsqueeze")
    if unsqueeze is not None and m.axes(unsqueeze) in ((2,), (-3,)):
        source = unsqueeze.inputs[0]
    else:
        squeezing = m.made_by(grown, "Reshape")
        source = squeezing.inputs[0] if squeezing is not None and m.static(grown, 2) == 1 else None
    if source is None or m.rank(source) != 4:
        return value
    few, many, times = m.static(source, 1), m.static(value, 1), m.static(expand.outputs[0], 2)
    if few is None or many is None or (times is not None and few * times != many) or many % few:
        return value
    return source if m.static(source, 3) == m.static(value, 3) else value


def _product(softmax: ir.Node) -> tuple[ir.Node | None, bool, ir.Node | None]:
    """(the matmul with the values, whether the weights were narrowed before it, the NaN guard)."""
    value = softmax.outputs[0]
    widened, guard = False, None
    while True:
        readers = m.users(value)
        if value.is_graph_output():
            return None, widened, guard
        nan = [node for node in readers if node.op_type == "IsNaN"]
        if len(readers) == 2 and len(nan) == 1 and guard is None:
            where = next(node for node in readers if node is not nan[0])
            if where.op_type != "Where" or where.inputs[0] is not nan[0].outputs[0]:
                return None, widened, guard
            if (
                where.inputs[2] is not value
                or m.scalar(where.inputs[1]) != 0
                or not m.is_private(nan[0].outputs[0])
            ):
                return None, widened, guard
            guard, value = where, where.outputs[0]
            continue
        if len(readers) != 1:
            return None, widened, guard
        reader = readers[0]
        if reader.op_type == "MatMul" and reader.inputs[0] is value and reader.inputs[1] is not value:
            return reader, widened, guard
        if reader.op_type == "Cast":
            widened = True
        elif reader.op_type not in ("Identity", "Dropout"):
            return None, widened, guard
        value = reader.outputs[0]


class _Scores:
    """What lies between query times key and the softmax, read upwards."""

    def __init__(self, value: ir.Value | None) -> None:
        self.matmul: ir.Node | None = None
        self.masks: list[Mask] = []
        self.scale = 1.0
        self.softcap = 0.0
        self.widened = False
        self.problem = ""
        while value is not None:
            node = value.producer()
            if node is None or node.domain not in ("", "ai.onnx"):
                return
            if value.is_graph_output() and not self.problem:
                self.problem = f"the scores ('{value.name}') are also a graph output"
            elif len(m.users(value)) != 1 and not self.problem:
                self.problem = f"the scores ('{value.name}') are used elsewhere too"
            if node.op_type == "MatMul":
                self.matmul = node
                return
            value = self._above(node)

    def _above(self, node: ir.Node) -> ir.Value | None:
        if node.op_type in ("Cast", "Identity"):
            self.widened |= node.op_type == "Cast"
            return node.inputs[0]
        if node.op_type in ("Mul", "Div"):
            value, factor = m.unscaled(node.outputs[0])
            if value is node.outputs[0]:
                return None
            capped = self._capped(node, value, factor)
            if capped is not None:
                return capped
            self.scale *= factor
            return value
        if node.op_type == "Add":
            return self._add(node)
        if node.op_type == "Where":
            return self._where(node)
        return None

    def _capped(self, node: ir.Node, value: ir.Value, factor: float) -> ir.Value | None:
        tanh = m.made_by(value, "Tanh")
        if tanh is None or tanh.inputs[0] is None:
            return None
        inner, inverse = m.unscaled(tanh.inputs[0])
        if abs(inverse * factor - 1) > 1e-3:
            # Another scale is folded into the cap's division: scores * scale / cap.
            self.scale *= inverse * factor
        self.softcap = factor
        return inner

    def _add(self, node: ir.Node) -> ir.Value | None:
        sides = [side for side in m.operands(node) if _reaches_matmul(side[0])]
        if not sides:
            return None
        scores, mask = sides[0]
        if mask is None or scores is None:
            return None
        if self.scale != 1.0 or self.softcap:
            self.problem = self.problem or "scores are scaled after the mask is added, needs before"
        self.masks.append(Mask(mask))
        return scores

    def _where(self, node: ir.Node) -> ir.Value | None:
        condition, yes, no = node.inputs
        if condition is None:
            return None
        for scores, low, kept in ((yes, no, True), (no, yes, False)):
            number = m.scalar(low)
            if number is not None and scores is not None and not m.is_constant(scores):
                if number > MASKED:
                    self.problem = self.problem or f"masked scores become {number:g}, needs {MASKED:g} or less"
                if self.scale != 1.0 or self.softcap:
                    self.problem = self.problem or "scores are scaled after the mask is applied, needs before"
                self.masks.append(Mask(condition, kept, low))
                return scores
        return None


def _reaches_matmul(value: ir.Value | None, steps: int = 8) -> bool:
    """Whether a value looks like scores: a matmul under a few elementwise operators."""
    for _ in range(steps):
        node = m.made_by(value, "MatMul", "Mul", "Div", "Add", "Where", "Cast", "Tanh", "Identity")
        if node is None:
            return False
        if node.op_type == "MatMul":
            return m.rank(node.inputs[1]) != 2
        if node.op_type == "Where":
            value = next((side for side in node.inputs[1:] if not m.is_constant(side)), None)
        elif node.op_type in ("Mul", "Add", "Div"):
            if node.op_type == "Add" and any(_reaches_matmul(side, steps - 1) for side in node.inputs):
                return True
            value = next((side for side in node.inputs if not m.is_constant(side)), None)
        else:
            value = node.inputs[0]
    return False


def _key(transposed: ir.Value) -> tuple[ir.Value, float, bool, bool]:
    """(key, scale, whether it is still transposed, whether its heads come after its tokens)."""
    value, scale = m.unscaled(transposed)
    node = m.made_by(value, "Transpose")
    if node is not None and node.inputs[0] is not None:
        order = tuple(m.attribute(node, "perm", ()))
        inner, more = m.unscaled(node.inputs[0])
        if order in ((0, 1, 3, 2), (0, 2, 1)):
            return inner, scale * more, False, False
        if order == (0, 2, 3, 1):
            return inner, scale * more, False, True
    found = _through_three_dimensions(value)
    if found is not None:
        inner, more = m.unscaled(found)
        return inner, scale * more, False, False
    return value, scale, True, False


def _through_three_dimensions(value: ir.Value) -> ir.Value | None:
    """Key behind Reshape (n, keys, head_dim), Transpose (0, 2, 1), Reshape back."""
    back = m.made_by(value, "Reshape")
    turn = m.made_by(back.inputs[0], "Transpose") if back is not None else None
    if turn is None or tuple(m.attribute(turn, "perm", ())) != (0, 2, 1):
        return None
    down = m.made_by(turn.inputs[0], "Reshape")
    key = down.inputs[0] if down is not None else None
    flat = down.outputs[0] if down is not None else None
    if key is None or m.rank(key) != 4 or m.rank(value) != 4 or flat is None:
        return None
    kept = all(m.same_dimension(m.dimension(flat, axis), m.dimension(key, axis)) for axis in (-1, -2))
    turned = m.same_dimension(m.dimension(value, 2), m.dimension(key, 3)) and m.same_dimension(
        m.dimension(value, 3), m.dimension(key, 2)
    )
    heads = m.same_dimension(m.dimension(value, 1), m.dimension(key, 1))
    return key if kept and turned and heads else None
