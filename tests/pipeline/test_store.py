"""The store: whole entries or none, whatever happens to the process, the disk or the files."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optimize.cli.main import app
from optimize.errors import UsageError
from optimize.pipeline.store import ENTRY, Store

KEY = "ab" + "0" * 62


def publish(store: Store, key: str = KEY, text: str = "result") -> Path:
    with store.lock(key):
        workspace = store.workspace(key)
        (workspace / "model.onnx").write_text(text)
        store.publish(
            key, "capture", workspace, facts={"x": 1}, inputs={"in": 2}, record={"seconds": 1.0}, dependencies={}
        )
    return store.root / "objects" / "ab" / key


def test_what_was_published_is_found_with_its_facts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store)
    entry = Store(tmp_path).lookup(KEY)
    assert entry is not None
    assert entry.facts == {"x": 1}
    assert (entry.directory / "model.onnx").read_text() == "result"


def test_an_unknown_key_is_not_found(tmp_path: Path) -> None:
    assert Store(tmp_path).lookup(KEY) is None


@pytest.mark.parametrize("damage", ["change", "remove", "truncate entry", "empty entry"])
def test_a_damaged_entry_is_not_found_and_can_be_published_again(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    directory = publish(store)
    if damage == "change":
        (directory / "model.onnx").chmod(0o644)
        (directory / "model.onnx").write_text("other!")
    elif damage == "remove":
        (directory / "model.onnx").unlink()
    elif damage == "truncate entry":
        (directory / ENTRY).write_bytes((directory / ENTRY).read_bytes()[:40])
    else:
        (directory / ENTRY).write_bytes(b"")
    assert store.lookup(KEY) is None
    publish(store, text="again")
    entry = store.lookup(KEY)
    assert entry is not None
    assert (entry.directory / "model.onnx").read_text() == "again"


@pytest.mark.parametrize(
    "damage",
    [
        {"record": {"seconds": "long", "made_at": 1.0}},
        {"record": {"seconds": 1.0, "made_at": "yesterday"}},
        {"record": {"seconds": 1.0, "made_at": 1e300}},
        {"record": {"seconds": 1.0, "made_at": float("nan")}},
        {"record": {"seconds": 1.0}},
        {"record": [1, 2]},
        {"inputs": [1, 2]},
        {"facts": None},
        {"stage": "capture\x1b[31m"},
        {"key": "../../../elsewhere"},
        {"key": "cd" + "0" * 62},
        {"files": ["model.onnx"]},
        [],
        "[" * 100_000,
        "a file instead of a folder",
    ],
)
def test_a_damaged_entry_is_counted_apart_and_removed(tmp_path: Path, damage: object) -> None:
    store, other = Store(tmp_path), "ab" + "1" * 62
    publish(store, other)
    directory = publish(store)
    data = json.loads((directory / ENTRY).read_text())
    (directory / ENTRY).chmod(0o644)
    if damage == "a file instead of a folder":
        shutil.rmtree(directory)
        directory.write_text("")
    elif isinstance(damage, str):
        (directory / ENTRY).write_text(damage)
    else:
        (directory / ENTRY).write_text(json.dumps({**data, **damage} if isinstance(damage, dict) else damage))
    assert store.lookup(KEY) is None
    listed = CliRunner().invoke(app, ["cache", "ls", "--store", str(tmp_path)])
    assert (listed.exit_code, listed.exception) == (0, None)
    assert "1 steps" in listed.output
    assert "1 damaged" in listed.output
    assert CliRunner().invoke(app, ["cache", "explain", other[:9], "--store", str(tmp_path)]).exception is None
    pruned = CliRunner().invoke(app, ["cache", "prune", "--store", str(tmp_path)])
    assert "removed 1 steps" in pruned.output
    assert not directory.exists()
    assert [entry.key for entry in store.entries()] == [other]


def test_an_entry_of_another_layout_is_not_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    directory = publish(store)
    data = json.loads((directory / ENTRY).read_text())
    (directory / ENTRY).chmod(0o644)
    (directory / ENTRY).write_text(json.dumps({**data, "layout": 999}))
    assert store.lookup(KEY) is None


def test_a_changed_dependency_makes_an_entry_stale(tmp_path: Path) -> None:
    from optimize.pipeline import digests

    store, code = Store(tmp_path / "store"), tmp_path / "code.py"
    code.write_text("a = 1")
    with store.lock(KEY):
        workspace = store.workspace(KEY)
        store.publish(
            KEY,
            "capture",
            workspace,
            facts={},
            inputs={},
            record={},
            dependencies={str(code): digests.of_file(code)},
        )
    assert store.lookup(KEY) is not None
    code.write_text("a = 2")
    assert store.lookup(KEY) is None


def test_a_folder_that_cannot_be_written_is_a_plain_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        Store(blocked / "store")


def _die_while_computing(root: str) -> None:
    store = Store(Path(root))
    with store.lock(KEY):
        (store.workspace(KEY) / "half").write_text("half")
        os._exit(9)


def test_what_a_dead_process_left_is_swept_and_its_lock_is_free(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die_while_computing, args=(str(tmp_path),))
    process.start()
    process.join()
    assert list((tmp_path / "tmp").iterdir())
    store = Store(tmp_path)
    assert store.sweep() == 1
    assert not list((tmp_path / "tmp").iterdir())
    publish(store)
    assert store.lookup(KEY) is not None


def test_a_workspace_in_use_is_not_swept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.lock(KEY):
        workspace = store.workspace(KEY)
        assert Store(tmp_path).sweep() == 0
        assert workspace.is_dir()


def _compute_or_reuse(root: str, log: str) -> None:
    store = Store(Path(root))
    with store.lock(KEY):
        if store.lookup(KEY) is None:
            workspace = store.workspace(KEY)
            time.sleep(0.2)
            with Path(log).open("a") as stream:
                stream.write("computed\n")
            store.publish(KEY, "s", workspace, facts={}, inputs={}, record={}, dependencies={})


def test_of_ten_processes_that_want_one_key_one_computes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_compute_or_reuse, args=(str(tmp_path / "store"), str(log))) for _ in range(10)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert log.read_text().splitlines() == ["computed"]
