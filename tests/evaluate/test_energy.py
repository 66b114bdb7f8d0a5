"""Energy: counters are read as they count, and where there is none the reason is told."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from optimize.evaluate import energy

RANGE = 262_143_328_850
"""Microjoules after which a real package's counter begins anew."""


class Tree:
    """A powercap tree whose package counters move as the test says."""

    def __init__(self, root: Path, packages: int = 1) -> None:
        self.folders = []
        for number in range(packages):
            self.folders.append(self._zone(root / f"intel-rapl:{number}", f"package-{number}"))
            self._zone(root / f"intel-rapl:{number}:0", "core")
        self._zone(root / f"intel-rapl:{packages}", "psys")

    def _zone(self, folder: Path, name: str) -> Path:
        folder.mkdir(parents=True)
        for file, text in (("name", name), ("max_energy_range_uj", str(RANGE)), ("energy_uj", "1000000")):
            (folder / file).write_text(f"{text}\n")
        return folder

    def spend(self, joules: float) -> None:
        for folder in self.folders:
            value = int((folder / "energy_uj").read_text()) + int(joules * 1e6)
            (folder / "energy_uj").write_text(f"{value % RANGE}\n")


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    tree = Tree(tmp_path, packages=2)
    found, missing = energy.meters("cpu", tmp_path)
    assert missing == ""
    assert [meter.device for meter in found] == ["CPU"]
    before = found[0].joules()
    tree.spend(3.5)
    assert found[0].joules() - before == pytest.approx(7.0)


def test_a_counter_that_begins_anew_goes_on(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tree.folders[0] / "energy_uj").write_text(str(RANGE - 500_000))
    (meter,) = energy.meters("cpu", tmp_path)[0]
    before = meter.joules()
    tree.spend(2.0)
    assert int((tree.folders[0] / "energy_uj").read_text()) < 2_000_000, "it did begin anew"
    assert meter.joules() - before == pytest.approx(2.0)


def test_a_run_costs_its_share_of_what_was_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path)
    ticks = itertools.count(step=0.5)
    monkeypatch.setattr(energy.time, "monotonic", lambda: next(ticks))
    (found,), problems = energy.use(lambda: tree.spend(6.0), energy.meters("cpu", tmp_path)[0], samples=8)
    assert problems == ()
    assert found.runs >= energy.LEAST_RUNS
    assert found.joules_per_sample == pytest.approx(6.0 / 8)
    assert found.watts == pytest.approx(6.0 * found.runs / found.seconds)


def test_without_counters_nothing_runs_and_the_reason_is_told(tmp_path: Path) -> None:
    found, missing = energy.meters("cpu", tmp_path)
    assert found == ()
    assert missing.startswith(f"CPU: no package counter under {tmp_path}")
    assert energy.use(lambda: pytest.fail("it ran"), found, samples=1) == ((), ())


def test_a_counter_that_goes_away_while_it_is_read_takes_only_its_own_figure(tmp_path: Path) -> None:
    steady, leaving = Tree(tmp_path / "steady"), Tree(tmp_path / "leaving")
    meters = [energy.meters("cpu", folder)[0][0] for folder in (tmp_path / "steady", tmp_path / "leaving")]

    def call() -> None:
        steady.spend(1.0)
        (leaving.folders[0] / "energy_uj").unlink(missing_ok=True)

    (found,), problems = energy.use(call, meters, samples=1)
    assert found.joules_per_sample == pytest.approx(1.0)
    assert problems == (f"CPU: {leaving.folders[0]}/energy_uj could not be read again (No such file or directory)",)


def test_a_gpu_that_cannot_be_asked_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy.importlib.util, "find_spec", lambda name: None)
    _, missing = energy.meters("cuda", tmp_path)
    assert missing.startswith("GPU: the Python package of NVML is not installed (pip install nvidia-ml-py); CPU: ")
