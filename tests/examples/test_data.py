"""The demo's data: splits that do not overlap, in an order that repeats, and manifests that name their source."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from calibration_data import digits, docstrings
from optimize.engines.base import AxisRange, TensorSpec
from optimize.evaluate.feeds import Digest, load_batches

ROOT = Path(__file__).parents[2]
TEXT = tuple(TensorSpec(name, "int64", ("batch", "tokens")) for name in ("input_ids", "attention_mask"))
RANGES = {"batch": AxisRange(1, 8, 64), "tokens": AxisRange(2, 128, 256)}


def read(split: str, samples: int) -> Digest:
    digest = Digest()
    for batch in load_batches(
        f"calibration_data/docstrings.py:{split}",
        samples=samples,
        batch=8,
        arguments={},
        base=ROOT,
        inputs=TEXT,
        ranges=RANGES,
        labels=None,
        seed=0,
    ):
        digest.add(batch)
    return digest


def test_sentences_fit_the_model_and_their_splits_share_none() -> None:
    calibration, evaluation = read("calibration", 64), read("evaluation", 256)
    assert len(calibration.samples) == 64
    assert len(set(evaluation.samples)) == 256
    assert not set(calibration.samples) & set(evaluation.samples)


def test_sentences_are_english_and_come_in_the_same_order() -> None:
    first, again = (list(itertools.islice(docstrings.sentences("evaluation"), 400)) for _ in range(2))
    assert first == again
    assert not set(first) & set(docstrings.sentences("calibration"))
    for sentence in first:
        assert sentence[0].isupper()
        assert sentence.endswith(".")
        assert 6 <= len(sentence.split()) <= 60
        assert not set("<>=_`{}[]") & set(sentence)
    other = list(itertools.islice(docstrings.sentences("evaluation", seed=1), 400))
    assert len(set(first) & set(other)) < 200


def test_batches_are_padded_and_masked() -> None:
    batch = next(docstrings.evaluation(samples=8))
    lengths = batch["attention_mask"].sum(1)
    assert batch["input_ids"].shape == (8, lengths.max())
    assert len(set(lengths)) > 1
    for row, length in enumerate(lengths):
        assert (batch["attention_mask"][row, :length] == 1).all()
        assert (batch["input_ids"][row, length:] == 0).all()


def test_digits_split_into_three_parts_without_overlap() -> None:
    parts = [digits.training()["image"], digits.calibration()["image"], digits.evaluation()["image"]]
    assert [len(part) for part in parts] == [1100, 200, 497]
    assert len({image.tobytes() for part in parts for image in part}) == 1797
    assert all(part.dtype == np.float32 and part.shape[1:] == (1, 8, 8) for part in parts)
    assert (min(part.min() for part in parts), max(part.max() for part in parts)) == (0, 1)
    assert set(digits.evaluation()["label"]) == set(range(10))


@pytest.mark.parametrize("path", sorted((ROOT / "calibration_data").glob("*.py")), ids=lambda path: path.stem)
def test_every_loader_has_a_manifest(path: Path) -> None:
    manifest = YAML(typ="safe").load(path.with_suffix(".yaml"))
    assert manifest["name"] == path.stem
    assert {"what", "source", "licence", "splits", "preprocessing", "sha256"} <= set(manifest)
