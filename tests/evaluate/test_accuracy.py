"""Comparing outputs: right results pass, deliberately wrong ones fail, and nothing fools the figures."""

from __future__ import annotations

import math
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optimize.errors import StageFailed, UsageError
from optimize.evaluate import agreement, distance
from optimize.evaluate.accuracy import Comparison
from optimize.facts import AccuracyResult, OutputAccuracy

rows = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=8),
    elements=st.floats(-100, 100, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3),
).filter(lambda array: bool(np.abs(array).max() > 0))


def compared(reference: np.ndarray, candidate: np.ndarray, kind: str = "regression") -> OutputAccuracy:
    comparison = Comparison(kind)  # type: ignore[arg-type]
    comparison.add({"y": reference}, {"y": candidate})
    return comparison.result("engine").outputs[0]


def batched(*pairs: tuple[np.ndarray, np.ndarray], kind: str = "auto") -> AccuracyResult:
    comparison = Comparison(kind)  # type: ignore[arg-type]
    for reference, candidate in pairs:
        comparison.add({"y": reference}, {"y": candidate})
    return comparison.result("engine")


@given(rows)
def test_equal_outputs_have_no_distance(array: np.ndarray) -> None:
    got = compared(array, array.copy())
    assert (got.max_abs, got.mean_abs, got.relative_l2, got.sqnr_db) == (0.0, 0.0, 0.0, math.inf)
    assert (got.cosine, got.cosine_min) == (1.0, 1.0)
    assert got.failure is None


@given(rows)
def test_a_scaled_output_is_found_though_its_cosine_is_one(array: np.ndarray) -> None:
    got = compared(array, array * np.float32(1.1))
    assert got.relative_l2 == pytest.approx(0.1, rel=1e-4)
    assert got.sqnr_db == pytest.approx(20.0, abs=1e-2)  # 20 log10(1 / 0.1)
    assert got.cosine == pytest.approx(1.0, abs=1e-6)


@given(rows, st.data())
def test_one_nan_spoils_every_figure(array: np.ndarray, data: st.DataObject) -> None:
    candidate = array.copy()
    candidate.flat[data.draw(st.integers(0, array.size - 1))] = np.nan
    got = compared(array, candidate)
    assert got.nan == 1
    assert got.failure is not None
    assert (got.max_abs, got.relative_l2, got.sqnr_db, got.cosine_min) == (math.inf, math.inf, -math.inf, 0.0)


@given(rows, st.data())
def test_one_infinity_spoils_every_figure(array: np.ndarray, data: st.DataObject) -> None:
    candidate = array.copy()
    candidate.flat[data.draw(st.integers(0, array.size - 1))] = np.inf
    got = compared(array, candidate)
    assert (got.inf, got.nan) == (1, 0)
    assert got.failure is not None
    assert got.max_abs == math.inf


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(0, 1000))
def test_a_swapped_axis_is_found(size: int, seed: int) -> None:
    array = np.random.default_rng(seed).standard_normal((3, size, size)).astype(np.float32)
    got = compared(array, array.swapaxes(1, 2))
    assert got.relative_l2 is not None
    assert got.relative_l2 > 1e-3
    assert got.cosine is not None
    assert got.cosine < 0.999999


def test_another_shape_fails_and_says_both() -> None:
    got = compared(np.ones((2, 3), np.float32), np.ones((3, 2), np.float32))
    assert got.failure == "shape [3, 2], expected [2, 3]"


def test_another_kind_of_type_fails_and_another_width_does_not() -> None:
    array = np.ones((2, 3), np.float32)
    assert compared(array, array.astype(np.int64)).failure == "type int64, expected float32"
    assert compared(array, array.astype(np.float16)).failure is None
    assert compared(array, array.astype(ml_dtypes.bfloat16)).failure is None


def test_missing_and_extra_outputs_fail() -> None:
    comparison = Comparison()
    array = np.ones((2, 3), np.float32)
    comparison.add({"a": array, "b": array}, {"a": array, "c": array})
    assert comparison.result("engine").failures == ("b: missing", "c: the original has no such output")


def test_an_output_missing_in_one_batch_only_fails() -> None:
    comparison = Comparison()
    array = np.ones((2, 3), np.float32)
    comparison.add({"a": array}, {"a": array})
    comparison.add({"a": array}, {})
    assert comparison.result("engine").failures == ("a: missing",)


def test_zero_against_zero_is_equal_but_no_pass_for_relative_figures() -> None:
    zeros = np.zeros((2, 3), np.float32)
    got = compared(zeros, zeros)
    assert (got.max_abs, got.relative_l2, got.sqnr_db, got.cosine) == (0.0, None, None, None)


def test_a_zero_candidate_is_as_far_as_the_reference_is_long() -> None:
    got = compared(np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32))
    assert (got.relative_l2, got.sqnr_db, got.cosine, got.cosine_min) == (1.0, 0.0, 0.0, 0.0)


def test_a_row_that_should_be_zero_and_is_not_has_cosine_zero() -> None:
    reference = np.array([[1, 2], [0, 0]], np.float32)
    candidate = np.array([[1, 2], [5, 5]], np.float32)
    assert compared(reference, candidate).cosine_min == 0.0
    assert compared(reference, reference).cosine_min == pytest.approx(1.0)


def test_infinities_of_a_mask_must_be_the_same() -> None:
    reference = np.array([[1.0, -np.inf], [2.0, -np.inf]], np.float32)
    result = batched((reference, reference.copy()))
    assert result.failures == ()
    assert result.outputs[0].max_abs == 0.0
    assert "NaN or infinite" in result.notes[0]
    wrong = np.array([[1.0, -np.inf], [2.0, 7.0]], np.float32)
    assert "1 values differ" in str(compared(reference, wrong).failure)


def test_no_data_is_no_pass() -> None:
    with pytest.raises(StageFailed, match="no evaluation data"):
        Comparison().result("engine")
    empty = np.zeros((0, 3), np.float32)
    assert compared(empty, empty).failure == "no sample was compared"


@given(rows, st.integers(0, 100))
def test_batches_and_chunks_add_up_to_the_whole(array: np.ndarray, seed: int) -> None:
    noise = np.random.default_rng(seed).standard_normal(array.shape).astype(np.float32)
    whole = compared(array, array + noise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distance, "CHUNK_ELEMENTS", 1)
        cut = len(array) // 2
        pairs = [
            (part, part + part_noise)
            for part, part_noise in ((array[:cut], noise[:cut]), (array[cut:], noise[cut:]))
        ]
        parts = batched(*pairs, kind="regression").outputs[0]
    assert parts.samples == whole.samples == len(array)
    for name in ("max_abs", "mean_abs", "relative_l2", "sqnr_db", "cosine", "cosine_min"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-9)


def test_figures_match_their_definitions() -> None:
    rng = np.random.default_rng(0)
    reference, noise = rng.standard_normal((50, 7)), 0.1 * rng.standard_normal((50, 7))
    candidate = reference + noise
    got = compared(reference, candidate)
    assert got.relative_l2 == pytest.approx(np.linalg.norm(noise) / np.linalg.norm(reference))
    assert got.sqnr_db == pytest.approx(10 * np.log10((reference**2).sum() / (noise**2).sum()))
    cosines = (reference * candidate).sum(1) / (
        np.linalg.norm(reference, axis=1) * np.linalg.norm(candidate, axis=1)
    )
    assert got.cosine == pytest.approx(cosines.mean())
    assert got.cosine_min == pytest.approx(cosines.min())


def test_flips_are_counted_and_told_apart_by_their_labels() -> None:
    reference = np.array([[9, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]], np.float32)
    candidate = np.array([[9, 0, 0], [0, 9, 0], [9, 0, 0], [0, np.nan, 9]], np.float32)
    comparison = Comparison("classification")
    comparison.add({"y": reference}, {"y": candidate}, np.array([0, 0, 0, 2]))
    result = comparison.result("engine")
    assert result.outputs[0].top1_agreement == 0.25
    assert [(flip.sample, flip.reference, flip.candidate, flip.label) for flip in result.flips] == [
        (1, 0, 1, 0), (2, 1, 0, 0), (3, 2, -1, 2)
    ]  # fmt: skip
    assert (result.reference_metrics["top1"], result.metrics["top1"]) == (0.75, 0.5)
    assert result.flips_total == 3
    assert (result.decisions, result.flips_worse, result.flips_better) == (4, 2, 1)


def test_flips_kept_are_bounded_while_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "FLIPS_KEPT", 5)
    left, right = np.tile(np.float32([[1, 0]]), (20, 1)), np.tile(np.float32([[0, 1]]), (20, 1))
    result = batched((left, right), (left, right), kind="classification")
    assert (len(result.flips), result.flips_total) == (5, 40)


def test_labels_make_an_automatic_comparison_a_classification() -> None:
    scores = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    comparison = Comparison()
    comparison.add({"y": scores}, {"y": scores}, scores.argmax(1))
    result = comparison.result("engine")
    assert result.metrics == {"top1": 1.0}
    assert result.outputs[0].top1_agreement == 1.0


def test_unit_rows_are_an_embedding_and_shuffled_neighbours_disagree() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((64, 16)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    same = batched((embeddings[:32], embeddings[:32]), (embeddings[32:], embeddings[32:]))
    assert same.outputs[0].neighbour_agreement == 1.0
    shuffled = embeddings[rng.permutation(64)]
    other = batched((embeddings, shuffled)).outputs[0].neighbour_agreement
    assert other is not None
    assert other < 0.2


def test_twins_among_the_samples_are_equally_good_neighbours() -> None:
    one = np.eye(4, dtype=np.float32)
    twins = np.concatenate([one, one, one])
    jitter = 1e-4 * np.random.default_rng(0).standard_normal(twins.shape).astype(np.float32)
    assert batched((twins, twins + jitter), kind="embedding").outputs[0].neighbour_agreement == 1.0


def test_collapsed_embeddings_do_not_agree() -> None:
    embeddings = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    for candidate in (np.ones_like(embeddings), np.zeros_like(embeddings), np.full_like(embeddings, np.nan)):
        got = batched((embeddings, candidate), kind="embedding").outputs[0].neighbour_agreement
        assert got is not None
        assert got < 0.2


def test_a_users_metric_sees_all_samples_of_both_sides() -> None:
    def mean(outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> dict[str, float]:
        assert labels is not None
        assert outputs["y"].shape == (4, 2)
        assert labels.tolist() == [0, 1, 2, 3]
        return {"mean": outputs["y"].mean()}

    comparison = Comparison("regression", mean)  # type: ignore[arg-type]
    for start in (0, 2):
        one = np.ones((2, 2), np.float32)
        comparison.add({"y": one}, {"y": 2 * one}, np.array([start, start + 1]))
    result = comparison.result("engine")
    assert (result.reference_metrics, result.metrics) == ({"mean": 1.0}, {"mean": 2.0})


def test_a_failing_metric_is_the_users_to_mend() -> None:
    comparison = Comparison(metric=lambda outputs, labels: {"a": outputs["nope"]})  # type: ignore[arg-type,dict-item]
    comparison.add({"y": np.ones((1, 2))}, {"y": np.ones((1, 2))})
    with pytest.raises(UsageError, match=r"evaluate.metric failed: KeyError: 'nope' \(test_accuracy.py:\d+\)"):
        comparison.result("engine")


@pytest.mark.parametrize("returned", [[1.0], None, {"a": "high"}, {"a": [1, 2]}, {"a": 10**400}])
def test_a_metric_that_returns_something_else_is_told_what_it_returned(returned: object) -> None:
    comparison = Comparison(metric=lambda outputs, labels: returned)  # type: ignore[arg-type,return-value]
    comparison.add({"y": np.ones((1, 2))}, {"y": np.ones((1, 2))})
    with pytest.raises(UsageError, match=rf"evaluate.metric returned {type(returned).__name__}, not names"):
        comparison.result("engine")


def test_a_metric_that_ends_the_process_fails_like_any_other() -> None:
    comparison = Comparison(metric=lambda outputs, labels: sys.exit(3))
    comparison.add({"y": np.ones((1, 2))}, {"y": np.ones((1, 2))})
    with pytest.raises(UsageError, match=r"evaluate.metric failed: SystemExit: 3 \(test_accuracy.py"):
        comparison.result("engine")
