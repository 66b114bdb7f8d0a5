"""Every pass keeps the house's conventions, whoever wrote it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import typing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pydantic
import pytest

from passes import registry
from passes.base import Pass, PassFailed, PassResult
from tests.support.runner import CPU, TENSORRT, context

ROOT = Path(__file__).parents[2]
NAMES = registry.names()
OWN = [name for name in NAMES if name.partition(".")[0] in registry.ROOMS]

BLOCK = """<ir_version: 10, opset_import: ["" : 21]>
encoder (float[batch, tokens, 64] x) => (float[batch, tokens, 64] y) <float[64] bias, float[64, 64] weight> {
    [linear] h = MatMul(x, weight)
    [bias] b = Add(h, bias)
    [act] a = Relu(b)
    [again] i = Identity(a)
    y = Add(i, x)
}"""
CONVOLUTION = """<ir_version: 10, opset_import: ["" : 21]>
image (float[batch, 4, 8, 8] x) => (float[batch, 8] y, float[batch, 8, 8, 8] features) <float[8, 4, 3, 3] w> {
    [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w)
    [act] features = Relu(c)
    [pool] p = GlobalAveragePool(features)
    [flat] y = Flatten(p)
}"""
BRANCH = """<ir_version: 10, opset_import: ["" : 21]>
choice (bool take, float[batch, 4] x) => (float[batch, 4] y) <float[4, 4] w> {
    [outer] h = MatMul(x, w)
    [if] y = If (take) <
        then_branch = t () => (float[batch, 4] a) { [n] a = MatMul(h, w) },
        else_branch = e () => (float[batch, 4] b) { [m] b = Abs(h) }
    >
}"""


def sample(text: str) -> ir.Model:
    """A model whose weights are drawn from a fixed seed."""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for value in proto.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if shape:
            array = rng.standard_normal(shape).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


SAMPLES = {"block": BLOCK, "convolution": CONVOLUTION, "branch": BRANCH}


def defaults(name: str) -> Pass | None:
    """The pass with its defaults; None when it has a required option and so never runs unasked."""
    try:
        return registry.find(name)()
    except pydantic.ValidationError:
        return None


def signature(model: ir.Model) -> list[tuple[str | None, str, str]]:
    """Names, types and shapes of inputs and outputs."""
    return [
        (value.name, str(value.dtype), str(value.shape)) for value in (*model.graph.inputs, *model.graph.outputs)
    ]


def documentation(name: str) -> str:
    """What the file and the class of a pass say about it."""
    found = registry.find(name)
    return f"{inspect.getmodule(found).__doc__ or ''}\n{inspect.getdoc(found) or ''}"


def test_there_are_passes_in_the_room_that_recipes_start_with() -> None:
    assert len([name for name in NAMES if name.startswith("clean.")]) >= 8


@pytest.mark.parametrize("name", OWN)
def test_a_file_holds_one_pass(name: str) -> None:
    tree = ast.parse((ROOT / "passes" / (name.replace(".", "/") + ".py")).read_text())
    classes = [item.name for item in tree.body if isinstance(item, ast.ClassDef)]
    module = importlib.import_module(f"passes.{name}")
    passes = [item for item in classes if issubclass(getattr(module, item), Pass)]
    assert len(passes) == 1, f"expected one pass in the file of {name}, found {passes or 'none'}"
    assert registry.name_of(registry.find(name)) == name


@pytest.mark.parametrize("name", NAMES)
def test_it_says_in_one_sentence_what_it_does(name: str) -> None:
    first = (inspect.getdoc(registry.find(name)) or "").partition("\n")[0]
    assert first, f"{name}: the class has no docstring"
    assert first.endswith("."), f"{name}: the first line is no sentence: {first!r}"
    assert registry.find(name).__doc__ != Pass.__doc__, f"{name}: the docstring is the base class's"


@pytest.mark.parametrize("name", OWN)
def test_it_shows_the_picture_before_and_after(name: str) -> None:
    text = documentation(name)
    for word in (r"Before\b", r"After\b", r"Leaves alone\b"):
        assert re.search(word, text), f"{name}: the docstring has no '{word}'"


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described(name: str) -> None:
    for model in _models(registry.find(name)):
        for option, field in model.model_fields.items():
            assert field.description, f"{name}: option '{option}' has no description"


def _models(model: type[pydantic.BaseModel]) -> list[type[pydantic.BaseModel]]:
    """The pass and every model inside its options."""
    found = [model]
    for field in model.model_fields.values():
        for inner in _classes(field.annotation):
            found += _models(inner)
    return found


def _classes(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [found for argument in typing.get_args(annotation) for found in _classes(argument)]


@pytest.mark.parametrize("name", NAMES)
def test_its_options_come_back_from_json_as_they_were(name: str) -> None:
    found = defaults(name)
    if found is not None:
        assert registry.find(name).model_validate_json(found.model_dump_json(), strict=True) == found


@pytest.mark.parametrize("name", OWN)
def test_a_test_file_exists(name: str) -> None:
    room, _, stem = name.partition(".")
    assert (ROOT / "tests" / "passes" / room / f"test_{stem}.py").is_file(), (
        f"no tests/passes/{room}/test_{stem}.py"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_check_answers_with_a_sentence_or_nothing(name: str) -> None:
    found = defaults(name)
    for target in (CPU, TENSORRT):
        answer = found.check(target) if found is not None else None
        assert answer is None or len(answer.split()) >= 4, f"{name}: {answer!r} does not say what to use instead"


@pytest.mark.parametrize("sample_name", SAMPLES)
@pytest.mark.parametrize("name", NAMES)
def test_the_model_stays_valid_and_a_second_run_changes_nothing(name: str, sample_name: str) -> None:
    found = defaults(name)
    if found is None or found.requires_calibration():
        return  # its own test file runs it with what it needs
    model = sample(SAMPLES[sample_name])
    before = signature(model)
    targets = [target for target in (CPU, TENSORRT) if found.check(target) is None]
    result = _apply(found, model, targets[0]) if targets else None
    if result is None:
        return
    assert signature(model) == before
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    again = found.apply(model, context(targets[0]))
    assert again.rewrites == 0, f"{name}: a second run rewrote {again.rewrites} more"
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once


def _apply(found: Pass, model: ir.Model, target: Any) -> PassResult | None:
    """The result, or None when the pass says in a sentence that this model is not for it."""
    try:
        return found.apply(model, context(target))
    except PassFailed as refusal:
        sentence = str(refusal)
    assert len(sentence.split()) >= 5, f"{registry.name_of(type(found))}: '{sentence}' says too little"
    return None


@pytest.mark.parametrize("room", registry.ROOMS)
def test_a_rooms_default_names_passes_that_run_unasked(room: str) -> None:
    try:
        names = registry.room_default(room)
    except registry.UnknownPass:
        return
    for name in names:
        assert name in NAMES, f"{room}: DEFAULT names '{name}', which is no file"
        found = defaults(name)
        assert found is not None, f"{name}: in DEFAULT but has a required option"
        assert not found.requires_calibration(), f"{name}: in DEFAULT but needs calibration data"
