"""The search for a mixture that meets a budget: what it leaves out, what it reports, and when it gives up."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from ruamel.yaml import YAML

from passes import names
from passes.base import PassFailed
from passes.quantize._search import Allowance, search
from passes.quantize.auto import QuantizeAuto
from passes.quantize.int8 import QuantizeInt8
from tests.support.calibration import Batches, normal
from tests.support.runner import TENSORRT, context, run

LAYERS = 6
ANY = TENSORRT.model_copy(update={"precisions": (*TENSORRT.precisions, "int4")})
QUANTIZED = (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN, ir.DataType.INT4, ir.DataType.UINT4)
STATIC = {"int8": {"activations": "static"}}


def branches(spoiled: tuple[int, ...], opset: int = 20) -> ir.Model:
    """The sum of six layers; the spoiled ones have giant weights that cancel, so that INT8 loses the others."""
    rng = np.random.default_rng(2)
    lines, arrays, at = [], {}, "x"
    for index in range(LAYERS):
        weight = rng.normal(0, 0.05, (32, 32)).astype(np.float32)
        if index in spoiled:
            # Rows 2k and 2k+1 see the same input with opposite signs: the giants cancel, their step does not.
            weight[0], weight[1] = 60, -60
        arrays[f"w{index}"] = weight
        lines += [f"[layer{index}] m{index} = MatMul(x, w{index})", f"h{index} = Add(m{index}, {at})"]
        at = f"h{index}"
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[n, 32] x0) => (float[n, 32] y) '
        "{ left = Gather <axis=1> (x0, pair) x = Identity(left) " + " ".join(lines) + f" y = Identity({at}) }}"
    )
    arrays["pair"] = np.array([0, 0, *range(2, 32)], np.int64)
    known = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in arrays.items():
        value = known[name]
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
        model.graph.register_initializer(value)
    return model


@dataclasses.dataclass
class RealJudge:
    """Scores with ONNX Runtime; the latency is counted in layers that still compute in floating point."""

    original: ir.Model
    data: Batches
    scored: int = 0
    slow_when_quantized: bool = False
    held_out: int = 0

    def accuracy(self, model: ir.Model) -> dict[str, float]:
        self.scored += 1
        cosines, lost, whole = [], 0.0, 0.0
        for feeds in self.data.feeds():
            expected, got = run(self.original, feeds)["y"], run(model, feeds)["y"]
            norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
            cosines.append(float(((expected * got).sum(axis=1) / norms).mean()))
            lost += float(np.square(got - expected).sum())
            whole += float(np.square(expected).sum())
        return {"cosine": float(np.mean(cosines)), "sqnr_db": 0.0, "relative_l2": (lost / whole) ** 0.5}

    def latency_ms(self, model: ir.Model) -> float:
        weights = [value for value in model.graph.initializers.values() if value.shape and value.shape.rank() == 2]
        quantized = sum(value.dtype in QUANTIZED for value in weights)
        return 10.0 + quantized * (1 if self.slow_when_quantized else -1)


def data() -> Batches:
    return Batches(tuple({"x0": batch["x"]} for batch in normal((128, 32)).batches))


def setting(model: ir.Model, **fields: object) -> tuple[RealJudge, object]:
    judge = RealJudge(model.clone(), data(), **fields)  # type: ignore[arg-type]
    return judge, context(TENSORRT, calibration=data(), judge=judge)


def test_a_model_within_the_budget_is_quantized_whole_with_one_evaluation() -> None:
    model = branches(())
    judge, world = setting(model)
    result = QuantizeAuto(options=STATIC, budget=0.99).apply(model, world)  # type: ignore[arg-type]
    assert (result.rewrites, judge.scored) == (LAYERS, 1)
    assert judge.accuracy(model)["cosine"] >= 0.99
    assert not result.skips


def test_exactly_the_spoiled_layers_are_left_out_named_and_pasteable() -> None:
    model = branches((1, 4))
    judge, world = setting(model)
    assert QuantizeInt8(activations="static").apply(whole := model.clone(), world).rewrites == LAYERS  # type: ignore[arg-type]
    assert judge.accuracy(whole)["cosine"] < 0.999
    result = QuantizeAuto(options=STATIC, budget=0.999).apply(model, world)  # type: ignore[arg-type]
    assert {item.node for item in result.skips} == {"layer1", "layer4"}
    assert all("its output errs by" in item.reason for item in result.skips)
    assert judge.accuracy(model)["cosine"] >= 0.999
    paste = result.notes[-1]
    assert "- quantize.int8:\n    activations: static\n    skip:\n      - 'layer1'\n      - 'layer4'" in paste
    assert sum(note.startswith("Trial") for note in result.notes) == result.figures["evaluations"]
    assert result.figures["evaluations allowed"] == 24
    assert float(result.figures["minutes"]) < float(result.figures["minutes allowed"])


@pytest.mark.parametrize("name", ["fp8", "int4"])
def test_formats_that_want_a_weight_for_themselves_are_measured_too(name: str) -> None:
    options = {"fp8": {"activations": "none"}, "int4": {"form": "standard", "block_size": 32}}[name]
    model = branches(())
    judge, world = setting(model)
    world = dataclasses.replace(world, target=ANY)  # type: ignore[type-var]
    result = QuantizeAuto(formats=(name,), options={name: options}, budget=0.98).apply(model, world)  # type: ignore[arg-type]
    assert result.rewrites == LAYERS
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph) == LAYERS
    assert judge.accuracy(model)["cosine"] >= 0.98


@pytest.mark.parametrize(("opset", "options"), [(11, STATIC), (18, {"fp8": {"activations": "none"}})])
def test_a_model_of_an_old_opset_is_measured_too(opset: int, options: dict[str, dict[str, object]]) -> None:
    model = branches((1, 4), opset)
    judge, world = setting(model)
    result = QuantizeAuto(formats=tuple(options), options=options, budget=0.99).apply(model, world)  # type: ignore[arg-type]
    assert result.rewrites
    assert model.opset_imports[""] > opset
    assert judge.accuracy(model)["cosine"] >= 0.99


def test_when_quantizing_is_not_faster_the_model_stays_as_it_was() -> None:
    model = branches(())
    _, world = setting(model, slow_when_quantized=True)
    before = ir.to_onnx_text(model)
    result = QuantizeAuto(options=STATIC, budget=0.9).apply(model, world)  # type: ignore[arg-type]
    assert result.rewrites == 0
    assert any(note.startswith("Not worth quantizing: 16 ms against 10 ms") for note in result.notes)
    assert ir.to_onnx_text(model) == before


def test_what_it_prints_can_be_pasted_whatever_the_options_are() -> None:
    options = {"int8": {"activations": "static", "smooth": None, "bias_correction": True, "percentile": 99.9}}
    model = branches((1,))
    _, world = setting(model)
    result = QuantizeAuto(options=options, budget=0.999).apply(model, world)  # type: ignore[arg-type]
    lines = result.notes[-1].partition("\n")[2]
    (pasted,) = YAML(typ="safe").load(lines)
    again = QuantizeInt8.model_validate(pasted["quantize.int8"])
    assert again == QuantizeInt8(**{**options["int8"], "skip": ("layer1",)})


def test_a_machine_that_slows_down_between_two_measurements_does_not_decide() -> None:
    @dataclasses.dataclass
    class Drifting(RealJudge):
        calls: int = 0

        def latency_ms(self, model: ir.Model) -> float:
            self.calls += 1
            return super().latency_ms(model) * (3 if self.calls == 2 else 1)

    model = branches(())
    world = context(TENSORRT, calibration=data(), judge=Drifting(model.clone(), data()))
    assert QuantizeAuto(options=STATIC, budget=0.99).apply(model, world).rewrites == LAYERS  # type: ignore[arg-type]


def test_a_budget_that_nothing_meets_leaves_the_model_and_says_so() -> None:
    model = branches((0, 1, 2, 3, 4, 5))
    judge, world = setting(model)
    result = QuantizeAuto(options=STATIC, budget=0.9999999, evaluations=3).apply(model, world)  # type: ignore[arg-type]
    assert (result.rewrites, judge.scored) == (0, 3)
    assert any("Nothing is quantized" in note for note in result.notes)
    assert len(result.skips) == LAYERS


def test_a_second_run_changes_nothing() -> None:
    model = branches(())
    _, world = setting(model)
    QuantizeAuto(options=STATIC, budget=0.99).apply(model, world)  # type: ignore[arg-type]
    before = Counter(node.op_type for node in model.graph)
    assert QuantizeAuto(options=STATIC, budget=0.99).apply(model, world).rewrites == 0  # type: ignore[arg-type]
    assert Counter(node.op_type for node in model.graph) == before


def test_the_error_metric_may_be_one_that_should_be_small() -> None:
    model = branches((3,))
    judge, world = setting(model)
    QuantizeAuto(options=STATIC, metric="relative_l2", budget=0.03).apply(model, world)  # type: ignore[arg-type]
    assert 0 < judge.accuracy(model)["relative_l2"] <= 0.03


def test_without_a_judge_or_data_it_says_what_is_missing() -> None:
    with pytest.raises(PassFailed, match="nothing here can"):
        QuantizeAuto(options=STATIC).apply(branches(()), context(TENSORRT, calibration=data()))
    model = branches(())
    judge = RealJudge(model, data())
    with pytest.raises(PassFailed, match=r"there is none\. Add `calibration:`"):
        QuantizeAuto(options=STATIC).apply(model, context(TENSORRT, judge=judge))


def test_a_format_that_the_target_refuses_is_refused_before() -> None:
    assert "activations: static" in str(QuantizeAuto().check(TENSORRT))
    assert QuantizeAuto(options=STATIC).check(TENSORRT) is None
    assert "cannot be set up" in str(QuantizeAuto(options={"int8": {"nonsense": 1}}).check(TENSORRT))


def test_the_search_finds_the_few_layers_that_matter_among_many() -> None:
    layers = [f"l{index:02d}" for index in range(64)]
    bad = {"l07", "l33", "l50"}
    error = {name: 1.0 if name in bad else 0.01 * (int(name[1:]) % 7) for name in layers}
    error["l20"] = 2.0  # looks bad, is not
    left, trials = search(
        layers, error, dict.fromkeys(layers, 1.0),
        lambda out: 1.0 - 0.1 * len(bad - out), 0.95, Allowance(40, float("inf")),
    )  # fmt: skip
    assert left == bad
    assert len(trials) <= 15
    assert trials[0].left_out == frozenset()


NAMING = {
    "named": lambda place, node: setattr(node, "name", f"it's/[{place}]"),
    "like their operator": lambda place, node: setattr(node, "name", "MatMul" if place == 1 else f"MatMul_{place}"),
    "nameless": lambda place, node: setattr(node, "name", ""),
    "in nested modules": lambda place, node: (
        setattr(node, "name", f"n{place}"),
        node.metadata_props.update({names.MODULE: "net" + ".deeper" * place}),
    ),
    "all in one module": lambda place, node: (
        setattr(node, "name", ""),
        node.metadata_props.update({names.MODULE: "net"}),
    ),
}
"""How layers may be called in a file."""


@pytest.mark.parametrize("naming", NAMING)
def test_the_pasted_lines_quantize_the_same_layers_whatever_they_are_called(naming: str) -> None:
    model = branches((1, 4))
    for place, node in enumerate(node for node in model.graph if node.op_type == "MatMul"):
        NAMING[naming](place, node)
    pasted = model.clone()
    judge, world = setting(model)
    result = QuantizeAuto(options=STATIC, budget=0.999).apply(model, world)  # type: ignore[arg-type]
    assert result.rewrites == LAYERS - 2
    lines = result.notes[-1].partition("\n")[2]
    (step,) = YAML(typ="safe").load(lines)
    again = QuantizeInt8.model_validate(step["quantize.int8"]).apply(pasted, world)  # type: ignore[arg-type]
    assert again.rewrites == LAYERS - 2
    assert Counter(node.op_type for node in pasted.graph) == Counter(node.op_type for node in model.graph)
    assert judge.accuracy(pasted) == judge.accuracy(model)


def test_a_layer_listed_under_a_formats_skip_is_not_counted_as_taken() -> None:
    model = branches(())
    _, world = setting(model)
    options = {"int8": {"activations": "static", "skip": ["layer2"]}}
    result = QuantizeAuto(options=options, budget=0.99).apply(model, world)  # type: ignore[arg-type]
    assert result.rewrites == LAYERS - 1
    assert [(item.node, item.reason) for item in result.skips] == [("layer2", "int8: listed under skip")]
    assert "Trial 1, int8: 1 of 6 layers left out" in result.notes[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"formats": ("int8", "int8")}, "names int8 more than once"),
        ({"options": {"int9": {}}}, "options is for int9, and formats has int8 alone"),
        ({"options": {"fp8": {}}}, "options is for fp8"),
        ({"budget": 2}, "budget is 2, and a cosine to be reached lies above 0 and up to 1"),
        ({"budget": float("nan")}, "finite"),
        ({"metric": "relative_l2", "budget": -0.1}, "largest relative_l2 accepted lies above 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        QuantizeAuto.model_validate(given)


@pytest.mark.parametrize(("metric", "least"), [("cosine", 0.995), ("sqnr_db", 20), ("relative_l2", 0.1)])
def test_each_metric_has_a_budget_of_its_own(metric: str, least: float) -> None:
    assert QuantizeAuto(metric=metric).least == least  # type: ignore[arg-type]


def test_it_says_why_nothing_is_quantized() -> None:
    def said(**given: object) -> tuple[str, set[str]]:
        model = branches((1,))
        _, world = setting(model)
        result = QuantizeAuto.model_validate({"options": STATIC} | given).apply(model, world)  # type: ignore[arg-type]
        assert result.rewrites == 0
        return result.notes[-1], {item.reason for item in result.skips}

    note, reasons = said(minutes=1e-7)
    assert "no candidate was scored in the time allowed" in note
    assert reasons == {"int8: no candidate was scored in the time allowed"}
    note, reasons = said(evaluations=1, budget=0.999999)
    assert "the one candidate scored misses the budget of cosine 0.999999" in note
    assert all("its output errs by" in reason for reason in reasons)
    note, reasons = said(options={"int8": {"activations": "static", "skip": ["*"]}})
    assert "no layer can take int8, each for the reason beside it" in note
    assert reasons == {"int8: listed under skip"}


def test_a_format_that_learns_the_data_by_heart_is_scored_on_other_data() -> None:
    """INT4's rounding fits 32 inputs of 24 rows: far better there than on the rows that were held out."""
    rows = np.random.default_rng(5).normal(size=(4, 8, 32)).astype(np.float32)
    batches = Batches(tuple({"x0": batch} for batch in rows))
    scores = []
    for held_out in (0, 1):
        model = branches(())
        judged = Batches(batches.batches[-1:]) if held_out else batches
        judge = RealJudge(model.clone(), judged, held_out=held_out)
        world = dataclasses.replace(context(ANY, calibration=batches, judge=judge))
        given = {"formats": ("int4",), "options": {"int4": {"form": "standard", "block_size": 32}}, "budget": 0.5}
        result = QuantizeAuto.model_validate(given).apply(model, world)
        assert result.rewrites == LAYERS
        scores.append(float(result.notes[0].partition("cosine ")[2].partition(":")[0]))
        where = "last batch, held out from fitting" if held_out else "which the formats are fitted to as well"
        assert any(where in note for note in result.notes)
    assert 1 - scores[1] > 2 * (1 - scores[0])


@pytest.mark.parametrize(("name", "skipped"), [("int4", ()), ("int4", ("layer3",)), ("fp8", ())])
def test_layers_that_share_a_weight_are_taken_or_left_out_together(name: str, skipped: tuple[str, ...]) -> None:
    options = {"fp8": {"activations": "none"}, "int4": {"form": "standard", "block_size": 32}}[name]
    model = branches((1,))
    nodes = {node.name: node for node in model.graph}
    nodes["layer4"].replace_input_with(1, nodes["layer1"].inputs[1])  # the spoiled one
    nodes["layer3"].replace_input_with(1, nodes["layer2"].inputs[1])
    _, world = setting(model)
    world = dataclasses.replace(world, target=ANY)  # type: ignore[type-var]
    given = {"formats": (name,), "options": {name: {**options, "skip": skipped}}, "budget": 0.99}
    result = QuantizeAuto.model_validate(given).apply(model, world)  # type: ignore[arg-type]
    left = {item.node for item in result.skips}
    assert left & {"layer1", "layer4"} == ({"layer1", "layer4"} if name == "int4" else set())  # FP8 bears giants
    assert ({"layer2", "layer3"} <= left) == bool(skipped)
    if skipped:
        (reason,) = [item.reason for item in result.skips if item.node == "layer2"]
        assert reason == f"{name}: shares its weight with 'layer3', which does not take {name}"
    held = model.graph.initializers.values()
    stored = [value for value in held if value.dtype in QUANTIZED and value.shape and value.shape.rank() == 2]
    read = sum(node.op_type == "MatMul" and node.inputs[1].producer() is not None for node in model.graph)
    assert read == result.rewrites == LAYERS - len(left)
    pairs = [{"layer1", "layer4"}, {"layer2", "layer3"}]
    assert len(stored) == result.rewrites - sum(not pair & left for pair in pairs)
