"""A baseline that makes no sense stops the run with a plain sentence."""

from __future__ import annotations

import numpy as np
import pytest

from optimize.evaluate.plausible import implausible

RNG = np.random.default_rng(0)
GOOD = RNG.standard_normal((40, 10)).astype(np.float32)


def test_a_sensible_original_is_accepted() -> None:
    assert implausible([({"y": GOOD}, None)]) is None
    assert implausible([({"y": GOOD}, GOOD.argmax(1))]) is None


def test_nan_is_named_with_its_output_and_count() -> None:
    bad = GOOD.copy()
    bad[3, 4] = np.nan
    sentence = implausible([({"y": GOOD}, None), ({"y": bad}, None)])
    assert sentence is not None
    assert "NaN in output 'y' (1 of 400 values)" in sentence


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_the_same_output_for_every_sample_is_found_across_batches(value: float) -> None:
    same = np.full((1, 10), value, np.float32)
    sentence = implausible([({"y": same}, None), ({"y": same}, None)])
    assert sentence is not None
    assert "same output for all 2 evaluation samples" in sentence


def test_one_varying_output_is_enough_and_one_sample_tells_nothing() -> None:
    same = np.ones((40, 3), np.float32)
    assert implausible([({"table": same, "y": GOOD}, None)]) is None
    assert implausible([({"y": same[:1]}, None)]) is None


def test_outputs_that_vary_in_size_are_not_constant() -> None:
    assert implausible([({"y": np.ones((1, 3))}, None), ({"y": np.ones((1, 4))}, None)]) is None


def test_guessing_is_found_where_there_are_labels() -> None:
    labels = RNG.integers(0, 10, 40)
    sentence = implausible([({"y": GOOD}, labels)])
    assert sentence is not None
    assert "no better than guessing among 10 classes" in sentence


def test_a_few_wrong_samples_are_no_proof_of_guessing() -> None:
    assert implausible([({"y": GOOD[:5]}, (GOOD[:5].argmax(1) + 1) % 10)]) is None


def test_masked_infinities_are_fine_and_all_infinite_is_not() -> None:
    masked = GOOD.copy()
    masked[:, 0] = -np.inf
    assert implausible([({"y": masked}, None)]) is None
    assert "infinite throughout" in str(implausible([({"y": np.full((2, 2), np.inf)}, None)]))


def test_empty_data_is_said() -> None:
    assert "empty" in str(implausible([]))
    assert "empty" in str(implausible([({"y": GOOD[:0]}, None)]))
