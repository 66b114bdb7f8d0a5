from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.fuse.attention import FuseAttention
from passes.rewriting import Rewriting, rewrite
from passes.stepwise import is_rounded, run_stepwise
from tests.support.runner import TENSORRT, context, run

SCORES = """<ir_version: 10, opset_import: ["" : 23]>
g (float16[B,4,S,16] q, float16[B,4,16,S] k, float16[B,4,S,16] v, float16[B,1,S,S] mask) => (float16[B,4,S,16] y)
{ s = MatMul(q, k) a = Add(s, mask) p = Softmax(a) y = MatMul(p, v) }"""


def feeds(low: float = -32752.0) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Three rows: nothing masked, some keys masked, all keys masked."""
    rng = np.random.default_rng(0)
    arrays = {
        name: (rng.standard_normal(shape) / 2).astype(np.float16)
        for name, shape in (("q", (3, 4, 5, 16)), ("k", (3, 4, 16, 5)), ("v", (3, 4, 5, 16)))
    }
    mask = np.zeros((3, 1, 5, 5), np.float16)
    mask[1, ..., 2:], mask[2] = low, low
    return {**arrays, "mask": mask}


def far(left: np.ndarray, right: np.ndarray) -> list[float]:  # type: ignore[type-arg]
    """Largest difference per row of the batch."""
    gap = np.abs(left.astype(np.float64) - right.astype(np.float64))
    return [float(row.max()) for row in gap]


def test_onnx_runtime_keeps_more_digits_between_float16_operators_than_the_standard() -> None:
    graph = ir.from_onnx_text(SCORES)
    stepwise = run_stepwise(list(graph.graph), feeds(), (), graph, run)
    # float16 steps by 16 at 32752: every score of the masked row becomes the mask's value, the weights are equal
    np.testing.assert_array_equal(stepwise["p"][2], np.float16(0.2))
    together = run(graph, feeds())["y"]
    near, partly, masked = far(together, stepwise["y"])
    assert max(near, partly) < 2**-9  # 11 significant bits, values below 2
    assert masked > 0.1  # together the scores were added in float32, and kept their differences


def test_its_fused_float16_attention_rounds_as_the_standard_says() -> None:
    graph = ir.from_onnx_text(SCORES)
    text = (
        SCORES[: SCORES.index("{")] + "{ t = Transpose<perm=[0,1,3,2]>(k) y = Attention<scale=1.0>(q, t, v, mask) }"
    )
    fused = run(ir.from_onnx_text(text), feeds())["y"]
    assert max(far(fused, run_stepwise(list(graph.graph), feeds(), (), graph, run)["y"])) < 2**-9


def test_float16_attention_with_rows_masked_throughout_fuses() -> None:
    text = SCORES.replace("float16[B,1,S,S] mask", "bool[B,1,S,S] kept")
    text = text.replace("{ s", "<float16 zero = {0}, float16 low = {0}> { mask = Where(kept, zero, low) s")
    graph = ir.from_onnx_text(text)
    graph.graph.initializers["low"].const_value = ir.tensor(np.float16(-32752), name="low")
    result = FuseAttention().apply(graph, context(TENSORRT))
    assert (result.rewrites, result.notes) == (1, ())


def _scaled(rewriting: Rewriting) -> None:
    """A wrong rewrite of a product: its result is a tenth too large."""
    for product in rewriting.nodes("MatMul")[:1]:
        draft = rewriting.draft("wrong", product)
        factor = draft.constant(np.asarray(1.1, np.float16), "factor")
        draft.replace(product.outputs[0], draft.op("Mul", [draft.op("MatMul", product.inputs), factor]))
        rewriting.propose(draft)


def test_a_wrong_float16_rewrite_is_still_rolled_back() -> None:
    graph = ir.from_onnx_text(SCORES)
    result = rewrite(graph, context(TENSORRT), ("wrong",), _scaled)
    assert result.rewrites == 0
    assert "differs by 0.1" in result.notes[0]


def test_weights_and_functions_are_at_hand_for_single_nodes() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23, "own" : 1]>
    g (float16[2] x) => (float16[2] y) <float16[2] w = {0, 0}> { a = Add(x, w) y = own.twice(a) }
    <domain: "own", opset_import: ["" : 23]> twice (x) => (y) { y = Add(x, x) }"""
    graph = ir.from_onnx_text(text)
    graph.graph.initializers["w"].const_value = ir.tensor(np.array([1, 2], np.float16), name="w")
    known = run_stepwise(
        list(graph.graph), {"x": np.ones(2, np.float16)}, list(graph.graph.initializers.values()), graph, run
    )
    np.testing.assert_array_equal(known["y"], np.array([4, 6], np.float16))


def test_only_16_bit_floats_count_as_rounded() -> None:
    assert is_rounded({"a": np.ones(1), "b": np.ones(1, np.float16)})
    assert not is_rounded({"a": np.ones(1), "b": np.ones(1, np.int64)})
