"""Progress says how far a step is and how long the rest takes, without pretending."""

from __future__ import annotations

import pytest

from optimize.cli import progress


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [(0, 0, ""), (12, 70, "12/70"), (120_000_000, 289_000_000, "120/289 MB")],
)
def test_counts_are_shown_in_their_unit(done: int, total: int, shown: str) -> None:
    assert progress.counted(done, total) == shown


def test_time_left_follows_from_the_speed_so_far() -> None:
    assert progress.seconds_left(elapsed=10.0, done=25, left=75) == 30.0
    assert progress.seconds_left(elapsed=10.0, done=0, left=75) is None


def test_without_a_terminal_a_long_step_tells_its_time_left_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.RunProgress() as shown:
        shown.started("passes")
        for done in range(101):
            shown.progress("write weights", done * 1_000_000, 100_000_000)
            now[0] += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "  passes: write weights 31/100 MB, about 69 s left"


def test_another_part_of_a_step_has_a_speed_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.RunProgress() as shown:
        shown.started("passes")
        shown.progress("quantize.int4", 7, 7)
        now[0] = 100.0
        shown.progress("write weights", 0, 100_000_000)
        now[0] = 150.0
        shown.progress("write weights", 50_000_000, 100_000_000)
    assert capsys.readouterr().err.splitlines()[-1].endswith("50/100 MB, about 50 s left")
