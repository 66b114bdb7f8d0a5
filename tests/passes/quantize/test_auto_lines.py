"""What `quantize.auto` prints, pasted into a recipe: the same layers in the same formats, the same accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from ruamel.yaml import YAML

from optimize.targets.loading import load
from passes import registry
from passes.base import PassContext, PassResult
from passes.layers import find
from passes.names import MODULE
from passes.quantize.auto import QuantizeAuto
from tests.support.calibration import Batches, normal
from tests.support.runner import context, run

SIZE = 64
LAYERS = 5
CPU = load("cpu", "onnxruntime")
FP8 = {"fp8": {"activations": "none"}}

NAMES = {
    "of their own": [f"layer_{at}" for at in range(LAYERS)],
    "none": [""] * LAYERS,
    "like the operator": ["MatMul", *(f"MatMul_{at}" for at in range(1, LAYERS))],
    "with an apostrophe": [f"it's/[{at}]/mm" for at in range(LAYERS)],
    "with a line feed": [f"one\n\t{at}" for at in range(LAYERS)],
}
MODULES = ["attn", "attn.out_proj", "mlp.0", "mlp", "mlp.1"]


def chain(names: list[str], modules: list[str] | None = None, opset: int = 21) -> ir.Model:
    """Layers one after the other; each has another share of weights that are too large for its columns' scales."""
    rng = np.random.default_rng(0)
    nodes, weights, at = [], [], "x"
    for index, name in enumerate(names):
        array = rng.normal(0, 0.12, (SIZE, SIZE)).astype(np.float32)
        array[: 2 * index, :] *= 30
        weights.append(numpy_helper.from_array(array, f"w{index}"))
        node = helper.make_node("MatMul", [at, f"w{index}"], [f"h{index}"], name=name)
        if modules:
            node.metadata_props.add(key=MODULE, value=modules[index])
        last = index == len(names) - 1
        nodes += [node, helper.make_node("Tanh", [f"h{index}"], ["y" if last else f"t{index}"])]
        at = f"t{index}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIZE])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIZE])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    imports = [helper.make_opsetid("", opset)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))


@dataclasses.dataclass
class Judge:
    """Scores with ONNX Runtime; every model takes as long."""

    original: ir.Model
    data: Batches
    held_out = 0

    def accuracy(self, model: ir.Model) -> dict[str, float]:
        expected, got = (
            np.concatenate([next(iter(run(each, feeds).values())) for feeds in self.data.feeds()]).ravel()
            for each in (self.original, model)
        )
        return {"cosine": float(expected @ got / np.linalg.norm(expected) / np.linalg.norm(got))}

    def latency_ms(self, model: ir.Model) -> float:
        return 1.0


def world_of(model: ir.Model) -> tuple[Judge, PassContext]:
    data = normal((128, SIZE))
    judge = Judge(model.clone(), data)
    return judge, context(CPU, calibration=data, judge=judge)


def quantize(model: ir.Model, budget: float, options: Mapping[str, dict[str, object]]) -> PassResult:
    _, world = world_of(model)
    fields = {"formats": tuple(options), "options": options, "budget": budget, "min_gain": 1.0}
    return QuantizeAuto.model_validate(fields).apply(model, world)


def paste(model: ir.Model, lines: str) -> dict[str, int]:
    """Run the lines as a recipe's passes, each with its count of layers."""
    _, world = world_of(model)
    counts = {}
    for entry in YAML(typ="safe").load(lines):
        ((name, options),) = entry.items()
        result = registry.find(name).model_validate(options).apply(model, world)
        counts[name.removeprefix("quantize.")] = result.rewrites
    return counts


def left(model: ir.Model) -> set[str]:
    """The stored weights that are still floating point, by name."""
    return {layer.weight.name for layer in find(model, ("MatMul", "Gemm"))[0]}


def check_paste(fresh: ir.Model, options: Mapping[str, dict[str, object]]) -> PassResult:
    """The budget lies above what all layers together reach, so that some must stay out."""
    judge, world = world_of(fresh)
    whole = fresh.clone()
    first = next(iter(options))
    registry.find(f"quantize.{first}").model_validate(options[first]).apply(whole, world)
    budget = 1 - (1 - judge.accuracy(whole)["cosine"]) / 2
    searched, pasted = fresh.clone(), fresh.clone()
    result = quantize(searched, budget, options)
    assert judge.accuracy(searched)["cosine"] >= budget
    assert result.rewrites > 0
    note = result.notes[-1]
    assert note.startswith("The same without a search:\n")
    counts = paste(pasted, note.partition("\n")[2])
    assert counts == {name: result.figures[f"layers in {name}"] for name in counts}
    assert sum(counts.values()) == result.rewrites
    assert left(pasted) == left(searched)
    assert len(left(pasted)) == LAYERS - result.rewrites
    assert judge.accuracy(pasted) == judge.accuracy(searched)
    return result


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_the_lines_give_the_same_whatever_the_nodes_are_called(names: list[str]) -> None:
    result = check_paste(chain(names), {"int8": {}})
    assert 0 < result.rewrites < LAYERS


@pytest.mark.parametrize("options", [{"int4": {}}, FP8], ids=["int4", "fp8"])
@pytest.mark.parametrize("names", ["none", "like the operator"])
def test_the_lines_of_other_formats_do_too(names: str, options: dict[str, dict[str, object]]) -> None:
    result = check_paste(chain(NAMES[names]), options)
    assert 0 < result.rewrites < LAYERS


@pytest.mark.parametrize("names", ["none", "with an apostrophe"])
def test_the_lines_of_several_formats_do_too(names: str) -> None:
    result = check_paste(chain(NAMES[names]), {"int4": {}, "int8": {}})
    assert result.figures["layers in int4"]
    assert result.figures["layers in int8"]


def test_a_layer_whose_module_holds_others_is_left_out_alone() -> None:
    result = check_paste(chain(NAMES["of their own"], MODULES), {"int8": {}})
    lines = result.notes[-1]
    assert "- 'layer_3'" in lines
    assert "- 'mlp'" not in lines


def test_the_lines_hold_for_a_model_whose_opset_is_raised() -> None:
    check_paste(chain(NAMES["none"], opset=11), {"int8": {"activations": "static"}})


def test_a_model_that_is_not_quantized_keeps_its_nodes_names() -> None:
    model = chain(NAMES["none"])
    before = ir.to_onnx_text(model)
    assert quantize(model, 1.0, {"int8": {}}).rewrites == 0
    assert ir.to_onnx_text(model) == before


def test_a_module_that_also_holds_a_layer_of_a_sub_graph_is_not_named_for_the_layer_beside_it() -> None:
    model = chain(["a", "b"], ["dec", "enc"])
    array = np.random.default_rng(1).normal(0, 0.12, (SIZE, SIZE)).astype(np.float32)

    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["y", "w_in"], [f"{name}_out"], name=name)
        node.metadata_props.add(key=MODULE, value="dec.below")
        output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["n", SIZE])
        return helper.make_graph([node], name, [], [output])

    proto = ir.to_proto(model)
    proto.graph.initializer.extend(
        [numpy_helper.from_array(array, "w_in"), numpy_helper.from_array(np.True_, "yes")]
    )
    proto.graph.node.append(
        helper.make_node("If", ["yes"], ["z"], name="if", then_branch=branch("then"), else_branch=branch("else"))
    )
    proto.graph.output[0].name = "z"
    model = ir.from_proto(proto)
    searched, pasted = model.clone(), model.clone()
    judge, _ = world_of(model)
    options = {"fp8": {"activations": "none", "skip": ["a"]}}
    note = quantize(searched, 0.9, options).notes[-1]
    paste(pasted, note.partition("\n")[2])
    assert left(pasted) == left(searched) == {"w0"}
    assert judge.accuracy(pasted) == judge.accuracy(searched)
