"""The engine's options as a recipe writes them."""

from __future__ import annotations

import pydantic
import pytest

from optimize.engines.tensorrt_options import Shapes, TensorRTOptions


def test_sizes_are_written_with_units() -> None:
    assert TensorRTOptions(workspace="4GiB").workspace == 4 << 30


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"builder_optimisation_level": 3}, "Extra inputs are not permitted"),
        ({"builder_optimization_level": 6}, "less than or equal to 5"),
        ({"workspace": "4 parsecs"}, "unit 'parsecs' does not fit"),
        ({"compute_capabilities": ["sm89"]}, "expected a compute capability such as 8.9, or current"),
        ({"weight_streaming_budget": 10}, "needs weight_streaming: true"),
        ({"plugin_layers": ["products"]}, r"plugin_layers needs plugins: \[builtin\]"),
        (
            {"plugin_layers": ["heads"], "plugins": ["builtin"]},
            "Input should be 'products', 'attention' or 'norms'",
        ),
        ({"plugin_layers": ["norms"], "plugins": ["builtin"], "strip_plan": True}, "neither refit nor strip_plan"),
        ({"refit_from": "model.onnx"}, "needs strip_plan: true"),
        ({"profiles": [{"x": {"min": [1, 2], "opt": [4], "max": [8, 2]}}]}, "differ in rank"),
        ({"profiles": [{"x": {"min": [1], "opt": [9], "max": [8]}}]}, "min <= opt <= max does not hold"),
        (
            {"profiles": [{"x": {"min": [1], "opt": [1], "max": [1]}}, {}]},
            "every profile must name the same inputs",
        ),
    ],
)
def test_a_wrong_option_is_refused_with_the_reason(fields: dict[str, object], words: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=words):
        TensorRTOptions.model_validate(fields)


def test_every_option_is_described() -> None:
    for options in (TensorRTOptions, Shapes):
        for name, field in options.model_fields.items():
            assert name == "kind" or field.description, name
