"""Feeds: every place data may come from, and what is refused with a plain sentence."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from optimize.engines.base import AxisRange, TensorSpec
from optimize.errors import BackendMissing, UsageError
from optimize.evaluate.batch import Batch, Digest, batched_inputs, sample_digests
from optimize.evaluate.feeds import load_batches
from optimize.evaluate.index_limits import index_limits

IMAGE = (TensorSpec("x", "float32", ("batch", 3)),)
TEXT = (TensorSpec("ids", "int64", ("batch", "tokens")), TensorSpec("mask", "int64", ("batch", "tokens")))
RANGES = {"batch": AxisRange(1, 4, 8), "tokens": AxisRange(2, 4, 16)}


def load(data: str, base: Path, inputs: Sequence[TensorSpec] = IMAGE, **options: Any) -> list[Batch]:
    settings: dict[str, Any] = {
        "samples": None,
        "batch": 4,
        "arguments": {},
        "base": base,
        "inputs": inputs,
        "ranges": RANGES,
        "labels": None,
        "seed": 0,
    }
    return list(load_batches(data, **{**settings, **options}))


def content_digest(batches: list[Batch]) -> str:
    digest = Digest()
    for batch in batches:
        digest.add(batch)
    return digest.hexdigest()


def write(base: Path, body: str) -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    (base / "data.py").write_text(f"import numpy as np\ndef samples(**options):\n{lines}\n")
    return "data.py:samples"


def test_single_samples_are_put_together_while_their_shapes_agree(tmp_path: Path) -> None:
    data = write(
        tmp_path,
        "for n in (3, 3, 5, 5, 5):\n    yield {'ids': np.arange(n), 'mask': np.ones(n, np.int64)}",
    )
    batches = load(data, tmp_path, TEXT, batch=2)
    assert [batch.feeds["ids"].shape for batch in batches] == [(2, 3), (2, 5), (1, 5)]
    assert np.array_equal(batches[1].feeds["ids"][1], np.arange(5))


def test_ready_batches_of_a_function_are_kept_as_they_are(tmp_path: Path) -> None:
    data = write(tmp_path, "for n in (5, 2):\n    yield {'x': np.full((n, 3), n, np.float32)}")
    assert [batch.size for batch in load(data, tmp_path)] == [5, 2]


def test_a_function_is_asked_for_no_more_than_the_samples_wanted(tmp_path: Path) -> None:
    data = write(
        tmp_path,
        "for n in range(100):\n    assert n < 6, 'too many'\n    yield {'x': np.full(3, n, np.float32)}",
    )
    batches = load(data, tmp_path, samples=6)
    assert [batch.size for batch in batches] == [4, 2]


def test_arrays_of_an_npz_file_are_cut_into_batches_with_their_labels(tmp_path: Path) -> None:
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    np.savez(tmp_path / "d.npz", x=x, label=np.arange(10))
    batches = load("d.npz", tmp_path, samples=6, labels="label")
    assert [batch.size for batch in batches] == [4, 2]
    assert np.array_equal(np.concatenate([batch.feeds["x"] for batch in batches]), x[:6])
    assert [batch.labels.tolist() for batch in batches if batch.labels is not None] == [[0, 1, 2, 3], [4, 5]]


def test_a_folder_is_read_in_the_order_of_its_file_names(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("b", "a"):
        np.savez(tmp_path / "d" / f"{name}.npz", x=np.full((1, 3), ord(name), np.float32))
    assert [batch.feeds["x"][0, 0] for batch in load("d", tmp_path)] == [97, 98]


def test_random_data_repeats_with_its_seed_and_stays_below_the_limit_of_an_index(tmp_path: Path) -> None:
    one, same, other = (
        load("random", tmp_path, TEXT, samples=8, seed=seed, limits={"ids": 7}) for seed in (1, 1, 2)
    )
    assert content_digest(one) == content_digest(same) != content_digest(other)
    ids = np.concatenate([batch.feeds["ids"] for batch in one])
    assert ids.shape == (8, 4)
    assert 0 <= ids.min() < ids.max() <= 6
    assert all((batch.feeds["mask"] == 1).all() for batch in one)


def test_an_npz_file_keeps_a_type_that_numpy_lacks(tmp_path: Path) -> None:
    values = np.ones((2, 3), ml_dtypes.bfloat16)
    np.savez(tmp_path / "d.npz", x=values)
    (batch,) = load("d.npz", tmp_path, (TensorSpec("x", "bfloat16", ("batch", 3)),))
    assert batch.feeds["x"].dtype == ml_dtypes.bfloat16
    assert np.array_equal(batch.feeds["x"], values)


def test_a_pickle_in_an_npz_file_is_not_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "harmed",))

    np.savez(tmp_path / "d.npz", x=np.array([Harm()], dtype=object))
    with pytest.raises(UsageError, match=r"array 'x' holds Python objects.*--allow-pickle"):
        load("d.npz", tmp_path)
    assert not (tmp_path / "harmed").exists()
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(UsageError, match=r"'raw.npz' is not a .npz file"):
        load("raw.npz", tmp_path)
    assert not (tmp_path / "harmed").exists()


WRONG = {
    "a wrong type": ("yield {'x': np.zeros((1, 3))}", "'x' expects float32, got float64.*astype"),
    "an unknown name": ("yield {'y': np.zeros((1, 3))}", "no input is called 'y'; the model has: x"),
    "a missing input": ("yield {}", "'x' is missing; given: nothing"),
    "NaN": ("yield {'x': np.array([[0, np.nan, 0]], np.float32)}", r"'x' holds NaN at \[0, 1\]"),
    "nothing": ("return []", "holds no samples"),
    "an empty batch": ("yield {'x': np.zeros((0, 3), np.float32)}", "the batch is empty"),
    "a wrong rank": ("yield {'x': np.zeros((1, 1, 1, 3), np.float32)}", "expects rank 2 .*got 4"),
    "a wrong size": ("yield {'x': np.zeros((1, 4), np.float32)}", "axis 1 of input 'x' must be 3, got 4"),
    "a batch above the range": ("yield {'x': np.zeros((9, 3), np.float32)}", "is 9; its range is 1 to 8"),
    "no dict": ("yield np.zeros(3)", "item 0 is a ndarray; expected a dict"),
    "no data": ("return 3", "returns a int"),
    "text for an array": ("yield {'x': 'abc'}", "'x' is a str, not an array"),
    "an exception": ("yield {'x': np.zeros(3, np.float32)}\n1 / 0", r"item 1: ZeroDivisionError.*data.py:4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_data_that_does_not_fit_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    body, sentence = WRONG[case]
    with pytest.raises(UsageError, match=sentence):
        load(write(tmp_path, body), tmp_path)


def test_a_missing_library_of_the_users_file_is_a_missing_backend(tmp_path: Path) -> None:
    data = write(tmp_path, "import no_such_library_here\nyield {}")
    with pytest.raises(BackendMissing, match=r"'no_such_library_here' \(data.py:3\)"):
        load(data, tmp_path)


def test_inputs_that_disagree_on_a_named_axis_are_refused(tmp_path: Path) -> None:
    data = write(tmp_path, "yield {'ids': np.ones((1, 3), np.int64), 'mask': np.ones((1, 4), np.int64)}")
    with pytest.raises(UsageError, match="'mask' \\('tokens'\\) is 4, but 3 in 'ids'"):
        load(data, tmp_path, TEXT)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("none.npz", "no such file"),
        ("none.py:samples", "no file 'none.py'"),
        ("data.py:none", "has no function 'none'. It has: samples"),
        ("nothing", "no folder in .*, no .npz file and no function"),
        ("no_such_module_here:samples", "no module is called 'no_such_module_here'"),
    ],
)
def test_data_that_is_not_there_is_named(data: str, sentence: str, tmp_path: Path) -> None:
    write(tmp_path, "yield {}")
    with pytest.raises(UsageError, match=sentence):
        load(data, tmp_path)


def test_a_sample_has_the_same_digest_however_it_was_padded() -> None:
    def batch(rows: list[list[int]], width: int) -> Batch:
        ids = np.array([row + [0] * (width - len(row)) for row in rows])
        mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        types = np.zeros_like(ids)
        return Batch({"ids": ids, "mask": mask, "types": types}, None, len(rows), inputs)

    inputs = (*TEXT, TensorSpec("types", "int64", ("batch", "tokens")))
    short = sample_digests(batch([[5, 6, 7]], 3))
    padded = sample_digests(batch([[5, 6, 7], [5, 6, 8, 9]], 5))
    assert short[0] == padded[0] != padded[1]
    assert sample_digests(batch([[5, 6]], 3)) != short


def test_content_digests_tell_apart_values_types_shapes_and_labels() -> None:
    x = np.zeros((2, 2), np.float32)
    variants = [
        Batch({"x": x}, None, 2, IMAGE),
        Batch({"x": x + 1}, None, 2, IMAGE),
        Batch({"x": x.astype(np.int32)}, None, 2, IMAGE),
        Batch({"x": x.reshape(1, 4)}, None, 1, IMAGE),
        Batch({"x": x}, np.zeros(2, np.int64), 2, IMAGE),
    ]
    assert len({content_digest([variant]) for variant in variants}) == len(variants)


def test_an_input_of_another_first_axis_is_shared_by_all_samples() -> None:
    inputs = (
        TensorSpec("x", "float32", ("batch", 3)),
        TensorSpec("scale", "float32", ()),
        TensorSpec("table", "float32", ("rows", 3)),
    )
    assert batched_inputs(inputs) == ("x",)


def test_the_limit_of_an_index_is_the_smallest_table_it_reaches() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        agraph (int64[b, t] ids, int64[b, t] mask) => (float[b, t, 4] y, float[b, t] z)
        <float[100, 4] words, float[9, 4] small> {
            y = Gather(words, ids)
            wide = Cast<to = 6>(ids)
            unused = Gather(small, wide)
            z = Cast<to = 1>(mask)
        }"""
    )
    assert index_limits(model) == {"ids": 9}


@pytest.mark.parametrize(
    ("place", "value"),
    [(8, 1), (10, 99)],  # the local and central headers' fields: flags "encrypted", an unknown compression
)
def test_an_npz_file_that_cannot_be_unpacked_is_refused_in_words(tmp_path: Path, place: int, value: int) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((4, 3), np.float32))
    data = bytearray((tmp_path / "d.npz").read_bytes())
    data[data.index(b"PK\x01\x02") + place] = value
    data[place - 2] = value
    (tmp_path / "d.npz").write_bytes(data)
    with pytest.raises(UsageError, match="damaged"):
        load("d.npz", tmp_path)


def test_an_array_header_that_ends_early_is_refused_in_words(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1L,\n"  # an old header, which NumPy tokenizes
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", member)
    with pytest.raises(UsageError, match="damaged"):
        load("d.npz", tmp_path)
