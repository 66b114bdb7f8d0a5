"""Saving streams, is whole or absent, and gives the same bytes every time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes import saving

ROWS, COLUMNS = 256, 1024


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, COLUMNS)).astype(np.float32)


def model_of(*tensors: ir.TensorProtocol) -> ir.Model:
    """`y = x + w0 + w1 + …`, each weight held as given."""
    x = ir.val("x", ir.DataType.FLOAT, [ROWS, COLUMNS])
    values, nodes, total = [], [], x
    for index, tensor in enumerate(tensors):
        value = ir.Value(name=f"w{index}", type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        value.const_value = tensor
        values.append(value)
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
        add = ir.node("Add", [total, cast.outputs[0]])
        nodes += [cast, add]
        total = add.outputs[0]
    total.name, total.type, total.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [total], nodes=nodes, initializers=values, opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def digest(folder: Path) -> dict[str, str]:
    return {item.name: hashlib.sha256(item.read_bytes()).hexdigest() for item in sorted(folder.iterdir())}


def test_a_small_model_is_one_file_and_reads_back(tmp_path: Path) -> None:
    written = saving.save(model_of(ir.tensor(weights(0), name="w0")), tmp_path / "model.onnx")
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]
    assert written == (tmp_path / "model.onnx").stat().st_size
    loaded = onnx.load(tmp_path / "model.onnx")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded.graph.initializer[0]), weights(0))


def test_a_large_model_has_one_data_file_and_reads_back_in_every_type(tmp_path: Path) -> None:
    quarter = np.random.default_rng(1).integers(-8, 8, (ROWS, COLUMNS)).astype(ml_dtypes.int4)
    model = model_of(
        ir.tensor(weights(0), name="w0"),
        ir.Tensor(quarter, name="w1"),
        ir.tensor(weights(2).astype(ml_dtypes.bfloat16), name="w2"),
    )
    written = saving.save(model, tmp_path / "model.onnx", inline_bytes=0)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert written == sum(item.stat().st_size for item in tmp_path.iterdir())
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    loaded = ir.load(tmp_path / "model.onnx").graph.initializers
    np.testing.assert_array_equal(loaded["w0"].const_value.numpy(), weights(0))
    np.testing.assert_array_equal(loaded["w1"].const_value.numpy(), quarter)
    np.testing.assert_array_equal(loaded["w2"].const_value.numpy(), weights(2).astype(ml_dtypes.bfloat16))


def test_lazy_tensors_are_evaluated_once_each_in_order_and_never_two_at_a_time(tmp_path: Path) -> None:
    order: list[int] = []
    alive = {"now": 0, "most": 0}

    class Counted(ir.Tensor):  # type: ignore[type-arg]
        def __init__(self, seed: int) -> None:
            super().__init__(weights(seed), name=f"w{seed}")
            order.append(seed)
            alive["now"] += 1
            alive["most"] = max(alive.values())

        def __del__(self) -> None:
            alive["now"] -= 1

    def lazy(seed: int) -> ir.LazyTensor:
        return ir.LazyTensor(
            lambda: Counted(seed), dtype=ir.DataType.FLOAT, shape=ir.Shape((ROWS, COLUMNS)), name=f"w{seed}"
        )

    saving.save(model_of(*(lazy(seed) for seed in range(5))), tmp_path / "model.onnx", inline_bytes=0)
    assert order == [0, 1, 2, 3, 4]
    assert alive["most"] == 1


def test_the_same_model_gives_the_same_bytes_and_stays_usable(tmp_path: Path) -> None:
    model = model_of(ir.tensor(weights(0), name="w0"), ir.tensor(weights(1), name="w1"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        saving.save(model, tmp_path / name / "model.onnx", inline_bytes=0)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    np.testing.assert_array_equal(model.graph.initializers["w1"].const_value.numpy(), weights(1))


def test_a_tensor_held_twice_is_written_once(tmp_path: Path) -> None:
    shared = ir.tensor(weights(0), name="w0")
    saving.save(model_of(shared, shared), tmp_path / "model.onnx", inline_bytes=0)
    assert (tmp_path / "model.onnx.data").stat().st_size == shared.nbytes
    loaded = ir.load(tmp_path / "model.onnx").graph.initializers
    np.testing.assert_array_equal(loaded["w1"].const_value.numpy(), weights(0))


def test_a_failure_half_way_leaves_the_old_pair_and_no_temporary_file(tmp_path: Path) -> None:
    saving.save(model_of(ir.tensor(weights(0), name="w0")), tmp_path / "model.onnx", inline_bytes=0)
    before = digest(tmp_path)

    def broken() -> ir.TensorProtocol:
        raise OSError(28, "No space left on device")

    bad = ir.LazyTensor(broken, dtype=ir.DataType.FLOAT, shape=ir.Shape((ROWS, COLUMNS)), name="w1")
    with pytest.raises(OSError, match="No space"):
        saving.save(model_of(ir.tensor(weights(3), name="w0"), bad), tmp_path / "model.onnx", inline_bytes=0)
    assert digest(tmp_path) == before


def test_a_model_is_not_saved_over_the_weights_it_reads(tmp_path: Path) -> None:
    saving.save(model_of(ir.tensor(weights(0), name="w0")), tmp_path / "model.onnx", inline_bytes=0)
    model = ir.load(tmp_path / "model.onnx")
    with pytest.raises(saving.CannotSave, match="another name"):
        saving.save(model, tmp_path / "model.onnx", inline_bytes=0)
    saving.save(model, tmp_path / "copy.onnx", inline_bytes=0)
    assert (tmp_path / "copy.onnx.data").read_bytes() == (tmp_path / "model.onnx.data").read_bytes()


def test_a_truncated_source_is_named(tmp_path: Path) -> None:
    saving.save(model_of(ir.tensor(weights(0), name="w0")), tmp_path / "model.onnx", inline_bytes=0)
    model = ir.load(tmp_path / "model.onnx")
    with open(tmp_path / "model.onnx.data", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(OSError, match="shorter than expected"):
        saving.save(model, tmp_path / "copy.onnx", inline_bytes=0)
    assert not list(tmp_path.glob("*.partial"))


def test_an_external_model_that_shrank_becomes_one_file(tmp_path: Path) -> None:
    saving.save(model_of(ir.tensor(weights(0), name="w0")), tmp_path / "model.onnx", inline_bytes=0)
    model = ir.load(tmp_path / "model.onnx")
    saving.save(model, tmp_path / "inline.onnx")
    assert not (tmp_path / "inline.onnx.data").exists()
    loaded = onnx.load(tmp_path / "inline.onnx")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded.graph.initializer[0]), weights(0))


def test_a_view_that_somebody_holds_does_not_stop_the_saving(tmp_path: Path) -> None:
    saving.save(model_of(ir.tensor(weights(0), name="w0")), tmp_path / "model.onnx", inline_bytes=0)
    model = ir.load(tmp_path / "model.onnx")
    tensor = model.graph.initializers["w0"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    held = tensor.numpy()[:2]
    saving.save(model, tmp_path / "inline.onnx")
    np.testing.assert_array_equal(held, weights(0)[:2])
