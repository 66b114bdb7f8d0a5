"""docs/placement.md and what quotes it show what was measured; every rule is turned round once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimize.targets import loading
from tests.benchmarks import placement, placement_page

ROOT = Path(__file__).parents[2]
CPU = json.loads((placement_page.FIGURES / "2026-11-29-avx2.json").read_text(encoding="utf-8"))["nets"]
WITHOUT = "without convolutions' results"


def test_the_page_is_what_the_files_say() -> None:
    assert placement_page.PAGE.read_text(encoding="utf-8") == placement_page.page()


@pytest.mark.parametrize(
    "path", ["README.md", "CHANGELOG.md", "docs/tensorrt.md", "optimize/targets/families/cpu.yaml"]
)
def test_figures_that_others_quote_are_the_files(path: str) -> None:
    text = " ".join((ROOT / path).read_text(encoding="utf-8").split())
    assert f"{CPU['resnet-18'][placement.BY_RULES]['ratio']:.2f} of FP32's time" in text
    if path == "CHANGELOG.md":
        assert f"it took {CPU['resnet-18'][WITHOUT]['ratio']:.2f}" in text
    elif not path.endswith(".yaml"):
        assert f"{CPU['resnet-18'][placement.TOOL]['ratio']:.2f}" in text


@pytest.mark.parametrize(("name", "engine", "form"), [("cpu", "onnxruntime", "int8"), ("h200", "tensorrt", "fp8")])
def test_every_variant_differs_from_the_rules_in_one_thing(name: str, engine: str, form: str) -> None:
    target = loading.load(name, engine)
    variants = list(placement.turned(target, form))
    assert variants[0][1:] == (target, {})
    assert len({what for what, _, _ in variants}) == len(variants)
    for what, rules, options in variants[1:]:
        own, turned = target.quantize.model_dump(), rules.quantize.model_dump()
        changed = [key for key in own if own[key] != turned[key]]
        assert len(changed) + len(options) == 1, what


def test_a_result_that_is_not_finite_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row: dict[str, Any] = {"ms": 12.34, "ratio": 1.5, "error": None, "bytes": 2_000_000}
    facts = {
        "form": "fp8", "device": "NVIDIA H200", "date": "2026-11-29", "batch": 32, "rounds": 3,
        "versions": {"tensorrt": "1"}, "rules": {"keep_first": [], "ops": ["Conv"]}, "nets": {"net": {"all": row}},
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(facts))
    monkeypatch.setattr(placement_page, "FIGURES", tmp_path)
    page = placement_page.page()
    assert "| net | all | 12.3 | 1.50 | not finite | 2.0 |" in page
    assert "Rules: keep_first: none; ops: Conv." in page
