"""`optimize doctor` names what does not fit together and the command that mends it."""

from __future__ import annotations

import pytest

from optimize.engines.tensorrt import TensorRTEngine
from optimize.facts import Environment
from optimize.pipeline import environment, health

GOOD = {"onnx": "1.21.0", "onnxruntime": "1.32.0", "onnxscript": "0.7.2", "onnx-ir": "1.1.0", "torch": "2.13.0+cpu"}
H200 = "NVIDIA H200, compute capability 9.0, driver 580.159.04"


def findings(
    libraries: dict[str, str],
    devices: tuple[str, ...] = (),
    target: str | None = None,
    instructions: tuple[str, ...] = (),
) -> list[health.Finding]:
    here = Environment(
        python="3.11.7",
        platform="Linux x86_64",
        processor="a processor",
        cores=2,
        memory_bytes=1 << 34,
        libraries=libraries,
        devices=devices,
        instructions=instructions,
    )
    return [item for item in health.examine(here, target) if not item.ok and "engine" not in item.what]


def test_this_machine_is_fit_for_the_embedded_engine() -> None:
    found = health.examine(environment.describe(), "cpu")
    assert [item.what for item in found if not item.ok and not item.optional] == []


@pytest.mark.parametrize(
    ("libraries", "devices", "words", "remedy"),
    [
        ({**GOOD, "onnx": "1.16.0"}, (), "onnx 1.16.0 is older than 1.20", "pip install 'onnx>=1.20'"),
        ({**GOOD, "onnxruntime-gpu": "1.32.0"}, (), "overwrite each other", "pip uninstall"),
        (
            {**GOOD, "torch": "2.13.0+cu130"},
            ("NVIDIA A100, compute capability 8.0, driver 550.54.15",),
            "driver 550.54.15 is older than CUDA 13 needs (580.65), for torch 2.13.0+cu130",
            "driver 580.65 or newer",
        ),
        (GOOD, (H200,), "torch 2.13.0+cpu is a CPU build on a machine with a GPU", "CUDA build"),
    ],
)
def test_what_does_not_fit_comes_with_its_remedy(
    libraries: dict[str, str], devices: tuple[str, ...], words: str, remedy: str
) -> None:
    (found,) = findings(libraries, devices)
    assert words in found.what
    assert remedy in found.remedy


def test_what_fits_is_not_complained_about() -> None:
    assert findings({**GOOD, "torch": "2.13.0+cu130"}, (H200,), target="h200") == []
    assert findings(GOOD) == []


def test_a_missing_library_is_named_with_its_command() -> None:
    (found,) = findings({name: version for name, version in GOOD.items() if name != "onnxscript"})
    assert (found.what, found.remedy) == ("onnxscript is not installed", "pip install onnxscript")


def test_a_target_that_this_machine_is_not_says_what_is_missing() -> None:
    (found,) = findings({**GOOD, "torch": "2.13.0+cu130"}, (H200,), target="l40s")
    assert "l40s needs compute capability 8.9" in found.what
    assert found.remedy == "in the recipe: target: h100 or h200"
    (found,) = findings(GOOD, target="l40s")
    assert found.remedy.endswith("on a machine without a GPU, in the recipe: target: cpu")
    (found,) = findings(GOOD, target="cpu-amx", instructions=("avx512_vnni",))
    assert "amx_int8" in found.what
    assert found.remedy == "in the recipe: target: cpu"


def test_an_engine_that_only_builds_here_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorRTEngine, "check", lambda self: None)
    monkeypatch.setattr(TensorRTEngine, "check_run", lambda self: "no GPU here.")
    found = {item.what: item.ok for item in health.examine(environment.describe(), None)}
    assert found["engine tensorrt: builds, and cannot run: no GPU here."]
    assert found["engine onnxruntime: ready"]
