"""Each attack of docs/security.md, tried for real through the command line."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support import runs, tiny

ROOT = Path(__file__).parents[2]


class Bomb:
    """An object whose unpickling leaves a trace."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.marker),))


def optimize(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optimize", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPTIMIZE_STORE": str(cwd / "store")},
    )


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.write_recipe(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.mkdir ['{marker}']\n",
        "a: !!python/object/new:os.system ['mkdir {marker}']\n",
        "a: !<tag:yaml.org,2002:python/name:os.mkdir> x\n",
    ],
)
@pytest.mark.parametrize("command", [("check",), ("run",), ("recipe", "show")])
def test_yaml_tags_build_no_objects(folder: Path, text: str, command: tuple[str, ...]) -> None:
    marker = folder / "pwned"
    (folder / "evil.yaml").write_text(tiny.RECIPE + text.format(marker=marker))
    refused(optimize(*command, "evil.yaml", cwd=folder))
    assert not marker.exists()


def test_an_alias_bomb_is_refused_quickly(folder: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (folder / "bomb.yaml").write_text("\n".join(lines))
    refused(optimize("check", "bomb.yaml", cwd=folder))


@pytest.mark.parametrize("command", [("check",), ("recipe", "show"), ("recipe", "resolve")])
def test_looking_at_a_recipe_runs_none_of_its_code(folder: Path, command: tuple[str, ...]) -> None:
    marker = folder / "pwned"
    (folder / "factory.py").write_text(f"import os; os.mkdir({str(marker)!r})\ndef build(): ...\n")
    text = tiny.RECIPE.replace("  kind: onnx\n  path: tiny.onnx\n", "  kind: torch\n  factory: factory.py:build\n")
    (folder / "code.yaml").write_text(text)
    optimize(*command, "code.yaml", cwd=folder)
    assert not marker.exists()


def test_data_only_refuses_recipes_that_name_code(folder: Path) -> None:
    marker = folder / "pwned"
    (folder / "data.py").write_text(f"import os; os.mkdir({str(marker)!r})\ndef samples(): ...\n")
    (folder / "code.yaml").write_text(tiny.RECIPE.replace("data: random", "data: data.py:samples"))
    refused(optimize("run", "code.yaml", "--data-only", cwd=folder), "data.py:samples")
    assert not marker.exists()


def test_data_only_refuses_recipes_that_name_native_libraries(folder: Path) -> None:
    text = tiny.RECIPE.replace("target: cpu", "target: h200").replace(
        "engine: {kind: onnxruntime}", "engine: {kind: tensorrt, plugins: [./evil.so]}"
    )
    (folder / "code.yaml").write_text(text)
    refused(optimize("run", "code.yaml", "--data-only", cwd=folder), "engine.plugins: ./evil.so")


def test_a_pickle_in_an_npz_is_not_loaded(folder: Path) -> None:
    marker = folder / "pwned"
    np.savez(folder / "evil.npz", x=np.array([Bomb(marker)], dtype=object))
    (folder / "evil.yaml").write_text(tiny.RECIPE.replace("data: random", "data: evil.npz"))
    refused(optimize("run", "evil.yaml", cwd=folder), "--allow-pickle")
    assert not marker.exists()


@pytest.mark.parametrize("member", ["archive/data.pkl", "data.pkl", "archive/data/sample_inputs/model.pt"])
def test_a_pickle_in_a_pt2_is_not_loaded(folder: Path, member: str) -> None:
    marker = folder / "pwned"
    with zipfile.ZipFile(folder / "evil.pt2", "w") as archive:
        archive.writestr(member, pickle.dumps(Bomb(marker)))
    text = tiny.RECIPE.replace("  kind: onnx\n  path: tiny.onnx\n", "  kind: exported_program\n  path: evil.pt2\n")
    (folder / "evil.yaml").write_text(text)
    result = optimize("run", "evil.yaml", cwd=folder)
    assert result.returncode in (2, 4)
    assert "Traceback" not in result.stderr
    assert not marker.exists()


def with_external(folder: Path, location: str) -> None:
    model = onnx.load(folder / "tiny.onnx")
    weight = model.graph.initializer[0]
    length = len(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        weight.external_data.add(key=key, value=value)
    onnx.save(model, folder / "tiny.onnx")


@pytest.mark.parametrize("kind", ["parent", "absolute", "symlink", "hardlink", "past the end"])
@pytest.mark.parametrize("command", ["run", "inspect"])
def test_external_data_stays_in_the_models_folder(folder: Path, kind: str, command: str) -> None:
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(bytes(64 * 64 * 4))
    inside = folder / "model"
    inside.mkdir()
    tiny.write_recipe(inside)
    if kind == "parent":
        location = "../outside/secret"
    elif kind == "absolute":
        location = str(outside / "secret")
    elif kind == "symlink":
        (inside / "data").symlink_to(outside / "secret")
        location = "data"
    elif kind == "hardlink":
        os.link(outside / "secret", inside / "data")
        location = "data"
    else:
        (inside / "data").write_bytes(bytes(100))
        location = "data"
    with_external(inside, location)
    name = "tiny.yaml" if command == "run" else "tiny.onnx"
    refused(optimize(command, name, cwd=inside), location)


def test_names_from_a_model_cannot_send_terminal_escapes_or_html(folder: Path) -> None:
    model = onnx.load(folder / "tiny.onnx")
    evil = "\x1b]0;pwned\x07<script>alert(1)</script>"
    model.graph.node[1].name = evil
    for field in (model.graph.node[3].output, [model.graph.output[0]]):
        if field is model.graph.node[3].output:
            field[0] = evil
        else:
            field[0].name = evil
    onnx.save(model, folder / "tiny.onnx")
    result = optimize("run", "tiny.yaml", "-o", "out", cwd=folder)
    inspected = optimize("inspect", "tiny.onnx", cwd=folder)
    for text in (result.stdout, result.stderr, inspected.stdout, inspected.stderr):
        assert "\x1b]0" not in text
    page = folder / "out" / "report.html"
    if page.exists():
        assert "<script>alert(1)" not in page.read_text()


@pytest.mark.parametrize("command", [("check", "tiny.yaml"), ("inspect", "tiny.onnx")])
def test_names_of_a_broken_model_cannot_send_terminal_escapes(folder: Path, command: tuple[str, str]) -> None:
    model = onnx.load(folder / "tiny.onnx")
    model.graph.node[1].input[0] = "\x1b]0;pwned\x07dangling"
    onnx.save(model, folder / "tiny.onnx")
    result = optimize(*command, cwd=folder)
    refused(result, "dangling")
    assert "\x1b]0" not in result.stderr + result.stdout


def test_a_zip_bomb_is_refused_before_it_fills_memory(folder: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 36, 64)})
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue())
    (folder / "bomb.yaml").write_text(tiny.RECIPE.replace("data: random", "data: bomb.npz"))
    result = optimize("run", "bomb.yaml", cwd=folder)
    assert result.returncode in (2, 4)
    assert "Traceback" not in result.stderr


def test_no_library_here_opens_a_connection(folder: Path) -> None:
    hook = "def hook(event, arguments):\n    if event == 'socket.connect':\n        raise OSError('network')\n"
    (folder / "sitecustomize.py").write_text(f"import sys\n{hook}sys.addaudithook(hook)\n")
    result = subprocess.run(
        [sys.executable, "-m", "optimize", "run", "tiny.yaml", "--store", "store"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"kind": "tensorrt", "plugins": ["./evil.so"]}, "plugins: ./evil.so"),
        ({"kind": "onnxruntime", "provider_options": {"trt_extra_plugin_lib_paths": "x"}}, "provider_options: trt"),
        ({"kind": "onnxruntime", "nonsense": 1}, "engine.nonsense: Extra inputs are not permitted"),
    ],
)
def test_libraries_that_a_run_names_are_not_loaded_unasked(tmp_path: Path, engine: object, said: str) -> None:
    ranges = {"ranges": {"batch": {"minimum": 1, "typical": 4, "maximum": 16}}}
    runs.finish(tmp_path / "run", source=ranges, recipe={"engine": engine})
    refused(optimize("bundle", "create", "run", "-o", "repo", "--format", "triton", cwd=tmp_path), said)
    assert not (tmp_path / "repo").exists()
