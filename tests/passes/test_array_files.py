"""Arrays come back under the names they had, also under those that NumPy's own writer takes for its arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from passes import array_files


def test_any_name_comes_back_and_nothing_else(tmp_path: Path) -> None:
    names = ("x", "file", "allow_pickle", "layer/0:1", "arr_0")
    arrays = {name: np.full((2, number), number, np.float32) for number, name in enumerate(names)}
    array_files.write(tmp_path / "a.npz", arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as back:
        assert tuple(back.files) == names
        for name in names:
            np.testing.assert_array_equal(back[name], arrays[name])


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        array_files.write(tmp_path / name, {"x": np.arange(4)})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_python_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        array_files.write(tmp_path / "a.npz", {"x": np.array([{}], object)})
