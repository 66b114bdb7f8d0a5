"""Blame: found in the layer that was spoiled on purpose, not in the ones that only pass the error on."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from optimize.engines.graph_runner import GraphRunner
from optimize.evaluate import attribution
from optimize.evaluate.attribution import compare_tensors, worst_layers
from optimize.evaluate.matching import match
from optimize.facts import TensorError
from passes.names import MODULE, NAME_SCOPES

LAYERS = ("encoder.0", "encoder.1", "encoder.2", "head")


@pytest.fixture
def model() -> ir.Model:
    """Four linear layers with bias and Relu between; modules as torch's exporter notes them."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[n, 32] x) => (float[n, 32] y) {
          m0 = MatMul(x, w0)
          a0 = Add(m0, b)
          r0 = Relu(a0)
          m1 = MatMul(r0, w1)
          a1 = Add(m1, b)
          r1 = Relu(a1)
          m2 = MatMul(r1, w2)
          a2 = Add(m2, b)
          r2 = Relu(a2)
          m3 = MatMul(r2, w3)
          y = Add(m3, b) }"""
    )
    rng = np.random.default_rng(0)
    nodes = list(model.graph)
    for index, module in enumerate(LAYERS):
        for node in nodes[3 * index : 3 * index + 2]:
            node.metadata_props[NAME_SCOPES] = str(["", module, "linear"])
        for node in nodes[3 * index + 2 : 3 * index + 3]:
            node.metadata_props[NAME_SCOPES] = str(["", f"act.{index}", "relu"])
        give(model, f"w{index}", (rng.standard_normal((32, 32)) / 4).astype(np.float32))
    give(model, "b", rng.standard_normal(32).astype(np.float32) / 10)
    return model


def give(model: ir.Model, name: str, array: np.ndarray) -> None:
    """Make a value that nodes read a weight."""
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name == name:
                weight = model.graph.initializers.get(name)
                if weight is None:
                    weight = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape))
                    weight.const_value = ir.tensor(array, name=name)
                    model.graph.register_initializer(weight)
                node.replace_input_with(index, weight)


def coarse(model: ir.Model, name: str, bits: int = 3) -> ir.Model:
    """The same model with one weight rounded to a few bits."""
    spoiled = model.clone()
    value = spoiled.graph.initializers[name]
    array = value.const_value.numpy()  # type: ignore[union-attr]
    step = np.abs(array).max() / 2 ** (bits - 1)
    value.const_value = ir.tensor((np.round(array / step) * step).astype(np.float32), name=name)
    return spoiled


@pytest.fixture
def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((16, 32)).astype(np.float32)} for _ in range(2)]


@pytest.mark.parametrize(("weight", "module"), [("w0", "encoder.0"), ("w2", "encoder.2"), ("w3", "head")])
def test_the_spoiled_layer_is_blamed_first(
    model: ir.Model, feeds: list[dict[str, np.ndarray]], weight: str, module: str
) -> None:
    found = compare_tensors(model, coarse(model, weight), feeds, GraphRunner(1))
    assert (found[0].module, found[0].op_type) == (module, "MatMul")
    assert worst_layers(found, 0.5) == (module,)


def test_layers_before_the_spoiled_one_are_untouched(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> None:
    found = {item.module: item for item in compare_tensors(model, coarse(model, "w2"), feeds, GraphRunner(1))}
    assert found["encoder.1"].sqnr_db == math.inf
    assert found["encoder.2"].sqnr_db is not None
    assert found["encoder.2"].sqnr_db < 30
    assert found["head"].sqnr_db is not None
    assert found["head"].sqnr_db < 40


def test_figures_are_those_of_the_values_themselves(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> None:
    spoiled = coarse(model, "w1")
    (found,) = [item for item in compare_tensors(model, spoiled, feeds, GraphRunner(1)) if item.value == "a1"]
    runner = GraphRunner(1)
    left = np.concatenate([runner(model, batch, ["a1"])["a1"] for batch in feeds]).astype(np.float64)
    right = np.concatenate([runner(spoiled, batch, ["a1"])["a1"] for batch in feeds])
    expected = 10 * np.log10((left**2).sum() / ((right - left) ** 2).sum())
    assert found.sqnr_db == pytest.approx(expected, abs=1e-3)


def test_a_renamed_value_is_matched_by_its_module(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> None:
    spoiled = coarse(model, "w1")
    for node in spoiled.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = f"renamed_{value.name}"
    pairs = {pair.module: pair for pair in match(model, spoiled)}
    assert (pairs["encoder.1"].optimized, pairs["encoder.1"].by_name) == ("renamed_a1", False)
    assert compare_tensors(model, spoiled, feeds, GraphRunner(1))[0].module == "encoder.1"


def test_a_value_that_only_shares_its_module_is_not_taken_for_the_same(
    model: ir.Model, feeds: list[dict[str, np.ndarray]]
) -> None:
    """The optimised graph computes encoder.1's value with the opposite sign and turns it back outside."""
    other = coarse(model, "w3", bits=7)
    nodes = {node.name or node.outputs[0].name: node for node in other.graph}
    add = next(node for node in nodes.values() if node.outputs[0].name == "a1")
    (relu,) = [reader for reader, _ in add.outputs[0].uses()]
    add.outputs[0].name = "inner"
    negative = ir.node("Neg", [add.outputs[0]])
    back = ir.node("Neg", [negative.outputs[0]])
    negative.outputs[0].name, back.outputs[0].name = "negative", "positive"
    negative.metadata_props[MODULE] = "encoder.1"
    back.metadata_props[MODULE] = "elsewhere"
    relu.replace_input_with(0, back.outputs[0])
    other.graph.insert_after(add, [negative, back])
    found = [item.module for item in compare_tensors(model, other, feeds, GraphRunner(1))]
    assert "encoder.1" not in found
    assert found[0] == "head"


def test_graphs_without_modules_are_matched_by_node_and_value_names(
    model: ir.Model, feeds: list[dict[str, np.ndarray]]
) -> None:
    for index, node in enumerate(model.graph):
        node.metadata_props.clear()
        node.name = f"node_{index}"
    found = compare_tensors(model, coarse(model, "w1"), feeds, GraphRunner(1))
    assert (found[0].module, found[0].value) == ("node_3", "m1")


def test_values_are_asked_for_in_small_groups(
    model: ir.Model, feeds: list[dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribution, "FIRST_VALUES", 1)
    monkeypatch.setattr(attribution, "BUDGET_BYTES", 1)
    asked: list[int] = []
    runner = GraphRunner(1)

    def counting(model: ir.Model, feeds: object, outputs: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        asked.append(len(outputs))
        return runner(model, feeds, outputs)  # type: ignore[arg-type]

    small = compare_tensors(model, coarse(model, "w1"), feeds, counting)  # type: ignore[arg-type]
    assert max(asked) == 1
    monkeypatch.undo()
    assert small == compare_tensors(model, coarse(model, "w1"), feeds, GraphRunner(1))


def error(value: str, added: float, *layers: str) -> TensorError:
    return TensorError(
        module=value, value=value, op_type="Add", sqnr_db=10.0, cosine=0.9, added=added, layers=layers
    )


def test_the_fewest_layers_that_added_a_share_of_the_noise_are_named_worst_first() -> None:
    tensors = [error("sum", 9.0), error("b", 3.0, "b"), error("norm", 4.0, "a"), error("c", 2.0, "c")]
    assert worst_layers(tensors, 0.4) == ("a",)
    assert worst_layers(tensors, 0.5) == ("a", "b")
    assert worst_layers(tensors, 0.95) == ("a", "b", "c")


def test_noise_that_layers_added_together_is_shared_out() -> None:
    tensors = [error("attention", 6.0, "query", "key", "value"), error("dense", 3.0, "dense")]
    assert worst_layers(tensors, 0.3) == ("dense",)
    assert worst_layers(tensors, 0.5) == ("dense", "query")


def test_no_layer_is_named_that_added_nothing() -> None:
    assert worst_layers([error("a", 0.0, "a")], 0.5) == ()
    assert worst_layers([], 0.95) == ()


def test_a_layer_that_a_pass_merged_into_the_next_value_is_told_by_that_value(
    model: ir.Model, feeds: list[dict[str, np.ndarray]]
) -> None:
    """As fused bias and activation do: the layer's own value has gone, the activation's shows its noise."""
    spoiled = coarse(model, "w1")
    for node in spoiled.graph:
        for output in node.outputs:
            if output.name in ("m1", "a1"):
                output.name = f"{output.name}_fused"
        if "encoder.1" in str(node.metadata_props.get(NAME_SCOPES)):
            node.metadata_props.pop(NAME_SCOPES)
    found = compare_tensors(model, spoiled, feeds, GraphRunner(1))
    assert "encoder.1" not in [item.module for item in found]
    assert "encoder.1" in found[0].layers
    assert worst_layers(found, 0.4)[0] in found[0].layers


def test_an_activations_noise_is_charged_to_the_layer_it_reads(
    model: ir.Model, feeds: list[dict[str, np.ndarray]]
) -> None:
    found = {item.value: item for item in compare_tensors(model, coarse(model, "w1"), feeds, GraphRunner(1))}
    assert found["r1"].module == "act.1"
    assert found["r1"].layers == ("encoder.1",)
