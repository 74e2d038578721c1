"""The numbers of probes, against values worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.measure.probes import (
    effectivity,
    forgetting,
    mean_loss,
    recognition,
    retainability,
    retention,
    without_outliers,
)


pytestmark = pytest.mark.own


NUMBERS = st.floats(-100, 100)
LISTS = st.lists(NUMBERS, max_size=20)


def test_the_loss_is_a_mean_over_tokens_and_not_over_rows():
    # A row of 1 token at -4 nats and one of 3 tokens at -2 in all: 6 nats over 4 tokens.
    assert mean_loss([-4.0, -2.0], [1, 3]) == 1.5


def test_a_model_that_guesses_has_the_loss_of_its_vocabulary():
    tokens = [3, 1, 7]
    assert mean_loss([n * math.log(1 / 50) for n in tokens], tokens) == pytest.approx(math.log(50))


def test_forgetting_is_what_the_loss_has_risen_over_the_base():
    assert forgetting(2.5, 1.0) == 1.5
    assert forgetting(1.0, 1.5) == -0.5
    assert forgetting(None, 1.0) is forgetting(1.0, None) is None


def test_recognition_counts_a_tie_as_a_half():
    assert recognition([-1.0, -5.0, -2.0, -3.0], [-2.0, -1.0, -2.0, -9.0]) == 2.5 / 4
    assert recognition([], []) is None


@given(LISTS)
def test_recognition_of_identical_pairs_is_chance(scores):
    assert recognition(scores, scores) == (0.5 if scores else None)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1))
def test_recognition_of_a_pair_and_of_its_reverse_add_up_to_one(pairs):
    a, b = zip(*pairs, strict=True)
    assert (recognition(a, b) or 0) + (recognition(b, a) or 0) == pytest.approx(1)


def test_retention_is_what_is_left_above_chance():
    assert retention(0.75, 1.0, 0.5) == 0.5
    assert retention(0.5, 0.9, 0.5) == 0
    assert retention(0.2, 0.8) == pytest.approx(0.25)
    assert retention(0.9, 0.6) == pytest.approx(1.5)  # more than was learned then


@pytest.mark.parametrize(
    ("now", "learned", "chance"), [(0.3, 0.5, 0.5), (0.3, 0.2, 0.5), (0, 0, 0), (None, 1, 0)]
)
def test_where_nothing_was_learned_nothing_can_be_retained(now, learned, chance):
    assert retention(now, learned, chance) is None
    assert retention(0.5, None) is None


def test_effectivity_is_the_rise_of_each_rows_log_probability():
    assert effectivity([-6.0, -2.0, -3.0], [-1.0, -2.0, -4.0]) == [5.0, 0.0, -1.0]


def test_retainability_is_the_share_of_the_rise_that_is_left():
    before, learned, later = [-6.0, -4.0, -2.0, -3.0], [-2.0, -1.0, -2.0, -5.0], [-3.0] * 4
    assert retainability(before, learned, later) == [0.75, pytest.approx(1 / 3), None, None]


@given(st.lists(st.tuples(NUMBERS, st.floats(0.01, 50)), min_size=1))
def test_retainability_is_1_at_lag_0_and_0_when_all_is_lost(rows):
    before = [a for a, _ in rows]
    learned = [a + rise for a, rise in rows]
    assert retainability(before, learned, learned) == [1.0] * len(rows)
    assert retainability(before, learned, before) == [0.0] * len(rows)


@given(st.integers(1, 9), NUMBERS)
def test_retainability_is_the_same_for_sums_and_for_means_a_token(tokens, later):
    of_sums = retainability([-8.0], [-2.0], [later])
    of_means = retainability([-8.0 / tokens], [-2.0 / tokens], [later / tokens])
    assert of_means == pytest.approx(of_sums)


def test_values_beyond_one_and_a_half_quartile_ranges_are_outliers():
    # Quartiles of 1..9 are 3 and 7, so the fence is at -3 and 13; with the tenth they hardly move.
    assert without_outliers([*range(1, 10), 100.0]) == list(range(1, 10))
    assert without_outliers([-100.0, *range(1, 10)]) == list(range(1, 10))
    assert without_outliers([1.0, 2.0, 3.0, 4.0, 8.5]) == [1.0, 2.0, 3.0, 4.0]  # 2, 4: up to 7
    assert without_outliers([1.0, 2.0, 3.0, 4.0, 8.0], factor=2) == [1.0, 2.0, 3.0, 4.0, 8.0]


@pytest.mark.parametrize("values", [[], [3.0], [3.0, 900.0], [2.0] * 5])
def test_few_or_equal_values_have_no_outlier(values):
    assert without_outliers(values) == values


@given(LISTS)
def test_most_values_are_kept_in_their_order(values):
    inliers = without_outliers(values)
    assert len(inliers) >= len(values) / 2
    remaining = iter(values)
    assert all(value in remaining for value in inliers)
