"""The file of what another tool learned: it comes back as it was, and anything else is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from passes.lessons import BadLessons, LayerLesson, Lessons, read, tidy, write

ONES = np.ones(3, np.float32)
LESSONS = Lessons(
    (
        LayerLesson("a", "int8", np.arange(3, dtype=np.float32), 0, "int8", np.float32(2.5), ONES, ONES, 2 * ONES),
        LayerLesson("b.c", None, None, 0, None, None, None, ONES, ONES, "it was not chosen"),
    ),
    ("A note.",),
    "a tool 1.0",
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write(LESSONS, tmp_path / "lessons.npz")
    back = read(tmp_path / "lessons.npz")
    assert (back.notes, back.tool) == (LESSONS.notes, LESSONS.tool)
    for old, new in zip(LESSONS.layers, back.layers, strict=True):
        for field, value in vars(old).items():
            if isinstance(value, np.ndarray | np.generic):
                np.testing.assert_array_equal(getattr(new, field), value)
            else:
                assert getattr(new, field) == value
    assert tidy(back.layers) == "1 in int8, 1 in floating point"


def test_a_pickle_a_cut_file_and_a_strange_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lessons.npz"
    np.savez(path, layers=np.array([{"module": "a"}], dtype=object))
    with pytest.raises(BadLessons, match="holds no lessons"):
        read(path)
    write(LESSONS, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadLessons, match="holds no lessons"):
        read(path)
    write(Lessons((LayerLesson("a", "int9", None, 0, None, None, None, ONES, ONES),)), path)  # type: ignore[arg-type]
    with pytest.raises(BadLessons, match="layer 'a' has an unknown format"):
        read(path)
