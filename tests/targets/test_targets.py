"""Every target loads for every engine it lists, and says where each of its facts comes from."""

from __future__ import annotations

import pytest

from optimize.errors import UsageError
from optimize.targets import loading

PAIRS = [(name, engine) for name in loading.names() for engine in loading.engines_of(name)]


@pytest.mark.parametrize(("name", "engine"), PAIRS)
def test_every_fact_has_its_source(name: str, engine: str) -> None:
    target = loading.load(name, engine)
    facts = {"precisions", "attention", *(("emulated",) if target.emulated else ())}
    if target.device == "cuda":
        facts |= {"compute_capability", "memory_bytes", "bandwidth_bytes_per_s", "peak_ops_per_s"}
    assert facts <= set(target.sources), facts - set(target.sources)
    rules = target.quantize
    placed = {
        "residual_adds", "convolution_results", "repeat_before", "one_scale_in_fp16", "keep_first", "keep_last",
    }  # fmt: skip
    flags = ("attention_matmuls", "integer_ops", "asymmetric", *placed)
    named = {"ops", "block_sizes", *(flag for flag in flags if getattr(rules, flag))}
    if engine == "tensorrt" or target.device == "cpu":
        named |= placed  # that there is no such rule has a source too
    assert named <= set(rules.sources)


def test_what_an_engine_does_everywhere_yields_to_what_it_does_on_a_family() -> None:
    hopper, ada = (loading.load(name, "tensorrt").quantize for name in ("h200", "l40s"))
    assert hopper.residual_adds == ada.residual_adds == ("int8", "fp8")
    assert hopper.sources["ops"] == ada.sources["ops"]
    merged = loading._merged({"a": {"b": 1, "c": 2}, "d": [3]}, {"a": {"c": 4}, "d": [5], "e": 6})
    assert merged == {"a": {"b": 1, "c": 4}, "d": [5], "e": 6}


@pytest.mark.parametrize(("name", "engine"), PAIRS)
def test_quantized_formats_are_precisions_of_the_target(name: str, engine: str) -> None:
    target = loading.load(name, engine)
    able = {*target.precisions, *target.emulated}
    assert set(target.quantize.ops) <= able
    assert set(target.quantize.block_sizes) <= set(target.quantize.ops)


def test_faster_precisions_have_higher_peak_rates() -> None:
    for name in loading.names():
        rates = loading.load(name, loading.engines_of(name)[0]).peak_ops_per_s
        ordered = [rates[item] for item in ("fp32", "tf32", "fp16", "fp8", "fp4") if item in rates]
        assert ordered == sorted(ordered), name


def test_fp4_needs_blackwell() -> None:
    able = {name for name in loading.names() if "fp4" in _precisions(name)}
    assert able == {"b200", "rtx-pro-6000-blackwell"}


def _precisions(name: str) -> tuple[str, ...]:
    engine = "tensorrt" if "tensorrt" in loading.engines_of(name) else "onnxruntime"
    return loading.load(name, engine).precisions


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no target is called 'h20'"):
        loading.load("h20", "tensorrt")


def test_a_cpu_has_no_tensorrt() -> None:
    with pytest.raises(UsageError, match="not run by the engine 'tensorrt'"):
        loading.load("cpu", "tensorrt")
