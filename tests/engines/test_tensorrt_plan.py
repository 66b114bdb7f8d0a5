"""Plans that must not load: damaged, changed, or made elsewhere. Each is one clear line."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest

from optimize.engines import tensorrt_device, tensorrt_library, tensorrt_plan
from optimize.engines.base import BuildRequest
from optimize.engines.tensorrt import TensorRTEngine
from optimize.engines.tensorrt_device import Device
from optimize.engines.tensorrt_library import FLAVOURS, Library
from optimize.engines.tensorrt_options import TensorRTOptions
from optimize.errors import MISSING, STAGE_FAILED, BackendMissing, StageFailed

RELU = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[4,8] x) => (float[4,8] y) { y = Relu(x) }
"""
H200 = Device(name="NVIDIA H200", compute_capability="9.0", driver="13.0")
L4 = Device(name="NVIDIA L4", compute_capability="8.9", driver="13.0")


@pytest.fixture
def plan(tmp_path: Path, tensorrt: Any) -> Path:
    onnx.save(onnx.parser.parse_model(RELU), tmp_path / "model.onnx")
    return TensorRTEngine().build(BuildRequest(tmp_path / "model.onnx", tmp_path), lambda *step: None).path


def edit(plan: Path, **fields: object) -> None:
    beside = tensorrt_plan.manifest_path(plan)
    beside.write_text(json.dumps(json.loads(beside.read_text()) | fields))


@pytest.mark.tensorrt
def test_a_truncated_plan_is_damaged(plan: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-100])
    with pytest.raises(StageFailed, match=r"engine\.plan is damaged: it has [\d,]+ bytes") as caught:
        TensorRTEngine().open(plan)
    assert caught.value.exit_code == STAGE_FAILED
    assert "\n" not in str(caught.value)


@pytest.mark.tensorrt
def test_an_edited_plan_is_refused(plan: Path) -> None:
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    with pytest.raises(StageFailed, match="was changed after it was built"):
        TensorRTEngine().open(plan)


@pytest.mark.tensorrt
def test_a_plan_without_its_manifest_is_refused(plan: Path) -> None:
    tensorrt_plan.manifest_path(plan).unlink()
    with pytest.raises(StageFailed, match=r"has no engine\.plan\.json beside it"):
        TensorRTEngine().open(plan)


@pytest.mark.tensorrt
def test_a_manifest_with_a_missing_key_names_it(plan: Path) -> None:
    beside = tensorrt_plan.manifest_path(plan)
    beside.write_text(json.dumps({key: v for key, v in json.loads(beside.read_text()).items() if key != "flavour"}))
    with pytest.raises(StageFailed, match="flavour: Field required"):
        TensorRTEngine().open(plan)


@pytest.mark.tensorrt
def test_a_plan_of_another_version_names_both(plan: Path) -> None:
    edit(plan, version="1.5.0.1")
    with pytest.raises(StageFailed, match=r"built by TensorRT for RTX 1\.5\.0\.1, here is TensorRT for RTX 1\.6"):
        TensorRTEngine().open(plan)


@pytest.mark.tensorrt
def test_a_plan_of_the_other_flavour_names_both(plan: Path) -> None:
    edit(plan, flavour="tensorrt", version="11.1.0")
    with pytest.raises(StageFailed, match=r"built by TensorRT 11\.1\.0, here is TensorRT for RTX"):
        TensorRTEngine().open(plan)


@pytest.mark.tensorrt
def test_a_plan_built_with_plugins_names_the_library_that_is_missing(plan: Path) -> None:
    edit(plan, plugins=["libfast.so"])
    with pytest.raises(BackendMissing, match=r"engine\.plan needs the plugin library libfast\.so"):
        TensorRTEngine().open(plan)


@pytest.mark.tensorrt
def test_a_plugin_library_that_is_not_there_is_named(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(RELU), tmp_path / "model.onnx")
    engine = TensorRTEngine(TensorRTOptions(plugins=("/nowhere/libfast.so",)))
    with pytest.raises(BackendMissing, match=r"plugin library /nowhere/libfast\.so cannot be opened"):
        engine.build(BuildRequest(tmp_path / "model.onnx", tmp_path), lambda *step: None)


@pytest.mark.tensorrt
@pytest.mark.skipif(tensorrt_device.find() is not None, reason="a GPU is here")
def test_without_a_gpu_a_sound_plan_says_what_is_missing(plan: Path) -> None:
    with pytest.raises(BackendMissing, match="no GPU here") as caught:
        TensorRTEngine().open(plan)
    assert caught.value.exit_code == MISSING


@pytest.mark.tensorrt
def test_the_manifest_records_what_the_plan_is(plan: Path) -> None:
    manifest = tensorrt_plan.read(plan)
    assert manifest.sha256 == tensorrt_plan.digest(plan)
    assert manifest.model_sha256 == tensorrt_plan.digest(plan.with_name("model.onnx"))
    assert [(spec.name, spec.dtype, spec.shape) for spec in manifest.inputs] == [("x", "float32", (4, 8))]


def test_a_plan_missing_altogether_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="there is no plan at"):
        TensorRTEngine().open(tmp_path / "engine.plan")


def manifest(**fields: Any) -> tensorrt_plan.Manifest:
    known = {
        "flavour": "tensorrt", "version": "11.1.0", "sha256": "", "size_bytes": 0, "model": "model.onnx",
        "model_sha256": "", "device": H200, "inputs": (), "outputs": (),
    }  # fmt: skip
    return tensorrt_plan.Manifest(**(known | fields))


FULL = Library(None, FLAVOURS[0], "11.1.0")


def test_a_version_compatible_plan_loads_in_a_later_minor_version_only() -> None:
    made = manifest(version_compatible=True)
    tensorrt_plan.check_library(made, Library(None, FLAVOURS[0], "11.4.0"))
    with pytest.raises(StageFailed, match="here is TensorRT 12"):
        tensorrt_plan.check_library(made, Library(None, FLAVOURS[0], "12.0.0"))


@pytest.mark.parametrize(
    ("level", "here", "loads"),
    [
        ("none", H200, True),
        ("none", L4, False),
        ("same_compute_capability", L4, False),
        ("same_compute_capability", H200.model_copy(update={"name": "NVIDIA H100"}), True),
        ("ampere_plus", L4, True),
        ("ampere_plus", L4.model_copy(update={"compute_capability": "7.5"}), False),
    ],
)
def test_a_plan_for_another_device_loads_only_as_far_as_it_was_asked_to(
    level: str, here: Device, loads: bool
) -> None:
    made = manifest(hardware_compatibility_level=level)
    if loads:
        tensorrt_plan.check_device(made, FULL, here)
    else:
        with pytest.raises(StageFailed, match=r"built for NVIDIA H200 \(compute capability 9\.0\)"):
            tensorrt_plan.check_device(made, FULL, here)


def test_a_portable_plan_limited_to_other_gpus_is_refused() -> None:
    portable = Library(None, FLAVOURS[1], "1.6.1")
    tensorrt_plan.check_device(manifest(), portable, L4)
    tensorrt_plan.check_device(manifest(compute_capabilities=("8.9",)), portable, L4)
    with pytest.raises(StageFailed, match=r"built for compute capability 8\.9, here is NVIDIA H200 \(9\.0\)"):
        tensorrt_plan.check_device(manifest(compute_capabilities=("8.9",)), portable, H200)


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    fields = manifest().model_dump(exclude={"sha256", "size_bytes", "manifest_version"})
    (tmp_path / "engine.plan.json").mkdir()
    with pytest.raises(StageFailed, match="cannot be written"):
        tensorrt_plan.write(tmp_path, b"plan", fields)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    fields = manifest().model_dump(exclude={"sha256", "size_bytes", "manifest_version"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StageFailed, match=r"the plan \(100,000 bytes\) cannot be written"):
            tensorrt_plan.write(tmp_path, bytes(100_000), fields)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_without_any_tensorrt_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = tuple(
        flavour.__class__(module=f"no_such_{flavour.module}", title="", package=flavour.package)
        for flavour in FLAVOURS
    )
    monkeypatch.setattr(tensorrt_library, "FLAVOURS", nowhere)
    tensorrt_library.load.cache_clear()
    try:
        said = TensorRTEngine().check()
    finally:
        tensorrt_library.load.cache_clear()
    assert said is not None
    assert "pip install tensorrt" in said


def test_a_broken_installation_is_told_apart_from_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt_broken.py").write_text("raise ImportError('libnvinfer.so.11: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    broken = FLAVOURS[0].__class__(module="tensorrt_broken", title="", package="tensorrt")
    monkeypatch.setattr(tensorrt_library, "FLAVOURS", (broken,))
    tensorrt_library.load.cache_clear()
    try:
        with pytest.raises(BackendMissing, match="is installed but: libnvinfer"):
            tensorrt_library.load()
    finally:
        tensorrt_library.load.cache_clear()
