"""Calibrating layers in turn: later layers see what earlier ones give once quantized, and make good for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from passes import registry
from passes.quantize._gptq import CORRECTION_DAMPING, corrected, damped
from passes.quantize._in_turn import InTurn, reaching
from passes.quantize._moments import Moments
from tests.support import runner
from tests.support.calibration import Batches

DEPTH, WIDTH = 4, 64


def chain() -> ir.Model:
    rng = np.random.default_rng(0)
    body = "a0 = MatMul(x, w0) "
    for i in range(1, DEPTH):
        body += f"r{i} = Tanh(a{i - 1}) a{i} = MatMul(r{i}, w{i}) "
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[m, {WIDTH}] x) => (float[m, n] y) '
        f"{{ {body} y = Identity(a{DEPTH - 1}) }}"
    )
    for i in range(DEPTH):
        numbers = rng.standard_t(3, (WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
        proto.graph.initializer.append(onnx.numpy_helper.from_array(numbers, f"w{i}"))
    return ir.from_proto(proto)


def correlated(seed: int, batches: int = 4) -> Batches:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).standard_normal((16, WIDTH)).astype(np.float32)
    return Batches(
        tuple({"x": rng.standard_normal((128, 16)).astype(np.float32) @ mixing / 4} for _ in range(batches))
    )


def error(name: str, target: Any, **options: Any) -> float:
    model, fresh = chain(), correlated(99, 1).batches[0]
    exact = runner.run(chain(), fresh)["y"]
    context = runner.context(target, calibration=correlated(1))
    assert registry.find(name).model_validate(options).apply(model, context).rewrites == DEPTH
    registry.find("quantize.simulate")().apply(model, runner.context())
    return float(np.linalg.norm(runner.run(model, fresh)["y"] - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("quantize.int4", {"algorithm": "gptq", "form": "standard"}),
        ("quantize.fp4", {"algorithm": "gptq"}),
        ("quantize.fp8", {"rounding": "output", "activations": "none"}),
    ],
)
def test_a_chain_errs_less_when_its_layers_are_calibrated_in_turn(name: str, options: dict[str, Any]) -> None:
    together = error(name, runner.TENSORRT, in_turn=False, **options)
    assert error(name, runner.TENSORRT, in_turn=True, **options) < 0.9 * together


def test_a_correction_is_the_damped_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((500, 8))
    now = exact @ np.diag(np.linspace(0.5, 1, 8)) + 0.01 * rng.standard_normal((500, 8))
    weight = rng.standard_normal((8, 3)).astype(np.float32)
    moments = Moments(now.T @ now / 500, now.T @ (exact - now) / 500)
    got = corrected(weight, moments)
    ridge = CORRECTION_DAMPING * np.mean(np.diag(moments.own)) * 500
    stacked = np.vstack([now, np.sqrt(ridge) * np.eye(8)])
    wanted = np.linalg.lstsq(stacked, np.vstack([exact @ weight, np.sqrt(ridge) * weight]), rcond=None)[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)  # float32 result of a float64 solution
    assert np.abs(exact @ weight - now @ got).mean() < 0.5 * np.abs(exact @ weight - now @ weight).mean()
    assert corrected(weight, Moments(moments.own)) is weight
    assert np.linalg.eigvalsh(damped(np.zeros((3, 3)))).min() > 0


def test_pairs_show_the_model_as_it_is_beside_the_original() -> None:
    model, data = chain(), correlated(1, 2)
    watched = InTurn(model, model.clone(), data, ["r1", "r2"])
    assert all((now == before).all() for now, before in watched.pairs("r1"))
    weight = model.graph.initializers["w0"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(0.5), name="w0")
    for batch, (now, before) in zip(data.batches, watched.pairs("r2"), strict=True):
        np.testing.assert_array_equal(before, runner.run(chain(), batch, ["r2"])["r2"])
        np.testing.assert_array_equal(now, runner.run(model, batch, ["r2"])["r2"])
        assert not (now == before).all()


def test_a_copy_that_reaches_a_value_computes_nothing_behind_it_and_leaves_the_model_alone() -> None:
    model = chain()
    copy = reaching(model, ["a1"])
    assert [node.op_type for node in copy.graph] == ["MatMul", "Tanh", "MatMul"]
    assert [value.name for value in copy.graph.inputs] == ["x"]
    assert len(model.graph) == 2 * DEPTH
    assert copy.graph.initializers["w1"].const_value is model.graph.initializers["w1"].const_value
    assert len(reaching(model, ["x"]).graph) == len(model.graph)


def test_auto_takes_gptq_where_there_are_calibration_data() -> None:
    stored = {}
    for label, algorithm, data in (("auto", "auto", correlated(1)), ("gptq", "gptq", correlated(1))):
        model = chain()
        context = runner.context(runner.TENSORRT, calibration=data)
        registry.find("quantize.int4").model_validate({"algorithm": algorithm}).apply(model, context)
        stored[label] = model.graph.initializers["w3.codes"].const_value.tobytes()
    model = chain()
    registry.find("quantize.int4")().apply(model, runner.context(runner.TENSORRT))
    assert stored["auto"] == stored["gptq"] != model.graph.initializers["w3.codes"].const_value.tobytes()
