"""Both forms of attention in 8 bits compute what the float attention does, as far as 8 bits go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.benchmarks import integer_attention
from tests.benchmarks.quantization_cells import OURS_DYNAMIC, TRIED, file_name

TEXT = """<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    g (float[2, 6, 16] x, int64[2, 6] attention_mask) => (float[2, 6, 16] y) {
        u, s, z = DynamicQuantizeLinear(x)
        q = com.microsoft.MatMulIntegerToFloat(u, wq, s, sq, z, , bq)
        k = com.microsoft.MatMulIntegerToFloat(u, wk, s, sk, z, , bk)
        v = com.microsoft.MatMulIntegerToFloat(u, wv, s, sv, z, , bv)
        keep = Cast <to = 9>(attention_mask)
        wide = Unsqueeze(keep, axes)
        row = Where(wide, nothing, low)
        mask = Expand(row, square)
        a = Attention <q_num_heads = 4, kv_num_heads = 4, scale = 0.5>(q, k, v, mask)
        y = Identity(a)
    }"""


def _run(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0])


@pytest.mark.parametrize(
    ("cell", "op", "tolerance"),
    [(TRIED[0], "QAttention", 1e-4), (TRIED[1], "QuantizeLinear", 0.02)],  # 8 bits of values up to about 2
)
def test_attention_in_8_bits_gives_what_it_gives_in_floats(
    cell: str, op: str, tolerance: float, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    held = {
        "axes": np.array([1, 2]),
        "nothing": np.float32(0),
        "low": np.float32(-1e4),
        "square": np.array([2, 1, 6, 6]),
    }
    for letter in "qkv":
        held["w" + letter] = rng.integers(-60, 61, (16, 16)).astype(np.int8)
        held["s" + letter] = rng.uniform(0.002, 0.004, 16).astype(np.float32)
        held["b" + letter] = rng.normal(size=16).astype(np.float32) / 10
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in held.items())
    onnx.save(model, tmp_path / file_name(OURS_DYNAMIC))
    integer_attention.make(tmp_path)
    x = rng.normal(size=(2, 6, 16)).astype(np.float32)
    feeds = {"x": x, "attention_mask": np.array([[1] * 6, [1, 1, 1, 1, 0, 0]])}
    expected = _run(tmp_path / file_name(OURS_DYNAMIC), feeds)
    path = tmp_path / file_name(cell)
    made = onnx.load(path).graph
    operators = [node.op_type for node in made.node]
    assert op in operators
    assert "Attention" not in operators
    np.testing.assert_allclose(_run(path, feeds), expected, atol=tolerance)
    unmasked = _run(path, feeds | {"attention_mask": np.ones((2, 6), np.int64)})
    assert np.abs(unmasked - expected).max() > 5 * tolerance


def test_a_model_without_attention_is_refused(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / file_name(OURS_DYNAMIC))
    with pytest.raises(ValueError, match="holds no Attention"):
        integer_attention.make(tmp_path)
