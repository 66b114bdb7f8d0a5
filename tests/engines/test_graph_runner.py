"""The runner of passes, on real sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from optimize.engines import graph_runner
from optimize.engines.graph_runner import GraphRunner, write_linked
from optimize.errors import UsageError


@pytest.fixture
def model() -> ir.Model:
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[n, 64] x) => (float[n, 64] y)
    { h = MatMul(x, w)
      r = Relu(h)
      y = Add(r, r) }"""
    model = ir.from_onnx_text(text)
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    value = next(node for node in model.graph if node.op_type == "MatMul").inputs[1]
    assert value is not None
    value.const_value = ir.tensor(weights, name="w")
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([64, 64])
    model.graph.register_initializer(value)
    return model


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)}


@pytest.mark.parametrize("in_memory_bytes", [0, 1 << 30], ids=["through a file", "in memory"])
def test_inner_values_inputs_and_weights_come_back_beside_outputs(
    model: ir.Model, feeds: dict[str, np.ndarray], in_memory_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_runner, "IN_MEMORY_BYTES", in_memory_bytes)
    got = GraphRunner(1)(model, feeds, ["y", "h", "x", "w"])
    weights = model.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    assert list(got) == ["y", "h", "x", "w"]
    np.testing.assert_array_equal(got["w"], weights)
    np.testing.assert_allclose(got["h"], feeds["x"] @ weights, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got["y"], 2 * np.maximum(got["h"], 0), rtol=1e-6)


def test_no_names_means_the_graphs_outputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    assert list(GraphRunner(1)(model, feeds)) == ["y"]


def test_the_session_is_kept_for_the_next_batch_and_dropped_when_the_graph_changes(
    model: ir.Model, feeds: dict[str, np.ndarray]
) -> None:
    runner = GraphRunner(1)
    before = runner(model, feeds)["y"]
    kept = runner._session
    runner(model, feeds)
    assert runner._session is kept
    value = model.graph.initializers["w"]
    value.const_value = ir.tensor(2 * value.const_value.numpy(), name="w")  # type: ignore[union-attr]
    np.testing.assert_allclose(runner(model, feeds)["y"], 2 * before, rtol=1e-6)


def test_running_leaves_the_model_as_it_was(
    model: ir.Model, feeds: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_runner, "IN_MEMORY_BYTES", 0)
    held = model.graph.initializers["w"].const_value
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    GraphRunner(1)(model, feeds, ["h"])
    assert model.graph.initializers["w"].const_value is held
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_weights_in_a_file_are_linked_not_written_again(
    model: ir.Model, feeds: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_runner, "IN_MEMORY_BYTES", 0)
    (tmp_path / "saved").mkdir()
    ir.save(model, tmp_path / "saved" / "m.onnx", external_data="m.data")
    loaded = ir.load(tmp_path / "saved" / "m.onnx")
    (tmp_path / "work").mkdir()
    write_linked(loaded, tmp_path / "work", ["y"])
    assert (tmp_path / "work" / "model.data").stat().st_size == 0
    assert (tmp_path / "work" / "linked-0.data").samefile(tmp_path / "saved" / "m.data")
    got = GraphRunner(1, tmp_path)(loaded, feeds)["y"]
    np.testing.assert_array_equal(got, GraphRunner(1, tmp_path)(model, feeds)["y"])


def test_an_unknown_value_is_named(model: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(UsageError, match="no value called 'nothing'"):
        GraphRunner(1)(model, feeds, ["nothing"])


def test_a_wrong_input_is_named(model: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(UsageError, match="input 'x': expected float32, got float64"):
        GraphRunner(1)(model, {"x": feeds["x"].astype(np.float64)})


def test_weights_in_a_data_file_of_another_folder_are_found(
    model: ir.Model, feeds: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = GraphRunner(1)(model, feeds)["y"]
    (tmp_path / "model").mkdir()
    (tmp_path / "elsewhere").mkdir()
    ir.save(model, tmp_path / "model" / "m.onnx", external_data="m.onnx.data", size_threshold_bytes=0)
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = ir.load(tmp_path / "model" / "m.onnx")
    assert isinstance(loaded.graph.initializers["w"].const_value, ir.ExternalTensor)
    np.testing.assert_array_equal(GraphRunner(1, scratch=tmp_path)(loaded, feeds)["y"], wanted)


def test_the_models_own_data_file_can_be_read_while_its_session_is_open(
    model: ir.Model, feeds: dict[str, np.ndarray], tmp_path: Path
) -> None:
    ir.save(model, tmp_path / "m.onnx", external_data="m.onnx.data", size_threshold_bytes=0)
    loaded = ir.load(tmp_path / "m.onnx")
    runner = GraphRunner(1, scratch=tmp_path)
    runner(loaded, feeds)
    weight = loaded.graph.initializers["w"].const_value
    assert weight is not None
    np.testing.assert_array_equal(weight.numpy(), model.graph.initializers["w"].const_value.numpy())
    assert not list(tmp_path.glob("graph-*"))


def test_a_weight_computed_from_a_linked_data_file_can_be_read_while_a_session_is_open(
    model: ir.Model, feeds: dict[str, np.ndarray], tmp_path: Path
) -> None:
    bias = ir.Value(name="b", const_value=ir.tensor(np.arange(64, dtype=np.float32), name="b"))
    model.graph.register_initializer(bias)
    relu = next(node for node in model.graph if node.op_type == "Relu")
    add = ir.node("Add", [relu.inputs[0], bias])
    model.graph.insert_before(relu, add)
    relu.replace_input_with(0, add.outputs[0])
    ir.save(model, tmp_path / "model.onnx", external_data="model.data", size_threshold_bytes=0)

    runner = GraphRunner(1, tmp_path)
    on_disk = ir.load(tmp_path / "model.onnx")
    runner(on_disk, feeds)
    stored = on_disk.graph.initializers["b"].const_value
    assert isinstance(stored, ir.ExternalTensor)
    stored.release()
    on_disk.graph.initializers["b"].const_value = ir.LazyTensor(
        lambda: ir.tensor(stored.numpy() * 2), dtype=stored.dtype, shape=ir.Shape([64]), name="b"
    )
    got = runner(on_disk, feeds, ["h", "y"])
    np.testing.assert_allclose(got["y"], 2 * np.maximum(got["h"] + 2 * np.arange(64), 0), rtol=1e-5)
