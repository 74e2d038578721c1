"""Intervals of few values: closed forms, another library's, and how often they hold the truth."""

import math
import random
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram.measure.statistics import (
    Interval,
    bootstrap,
    deviation,
    mean,
    paired,
    student_quantile,
)


scores = st.lists(st.integers(-64, 64).map(lambda n: n / 64), min_size=2, max_size=8)


def test_of_nothing_nothing_is_said():
    assert mean([]) is None
    assert deviation([0.5]) is None
    assert bootstrap([0.5]) is None
    alone = paired({1: 0.5}, {1: 0.25})
    assert (alone.pairs, alone.mean, alone.interval, alone.within_noise) == (1, 0.25, None, None)
    assert paired({1: 0.5}, {2: 0.5}).mean is None


def test_a_mean_and_a_deviation():
    assert mean([0.1, 0.2, 0.6]) == pytest.approx(0.3)
    assert deviation([1.0, 2.0, 4.0]) == pytest.approx(math.sqrt(7 / 3))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 9, 30, 101])
@pytest.mark.parametrize("probability", [0.5, 0.75, 0.95, 0.975, 0.9995])
def test_the_quantiles_are_those_of_scipy(freedom, probability):
    student = pytest.importorskip("scipy.stats").t
    expected = student.ppf(probability, freedom)
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_paired_differences_in_closed_form():
    ours = {("a", 0): 0.5, ("a", 1): 0.75, ("b", 0): 1.0, ("b", 1): 0.9}
    theirs = {("b", 0): 0.5, ("a", 1): 0.5, ("a", 0): 0.5}  # of (b, 1) there is none
    found = paired(ours, theirs)
    assert (found.pairs, found.mean) == (3, 0.25)
    half = 4.302652729911275 * 0.25 / math.sqrt(3)  # t of two degrees; differences 0, .25, .5
    assert found.interval is not None
    assert found.interval.low == pytest.approx(0.25 - half)
    assert found.interval.high == pytest.approx(0.25 + half)
    assert found.within_noise is True


def test_a_difference_that_is_no_noise_and_one_of_nothing_at_all():
    steady = paired({0: 0.7, 1: 0.8, 2: 0.9}, {0: 0.5, 1: 0.61, 2: 0.7})
    assert steady.within_noise is False
    same = paired({0: 0.7, 1: 0.8}, {0: 0.7, 1: 0.8})
    assert same.interval == Interval(0, 0)
    assert same.within_noise is True


def test_an_interval_that_only_touches_zero_contains_it():
    assert Interval(0.0, 0.5).holds_zero
    assert Interval(-0.5, 0.0).holds_zero
    assert not Interval(0.1, 0.5).holds_zero
    assert not Interval(-0.5, -0.1).holds_zero


@settings(max_examples=20)
@given(scores, st.randoms())
def test_a_bootstrap_stays_among_its_values_and_does_not_depend_on_their_order(values, random):
    found = bootstrap(values)
    assert found is not None
    assert min(values) <= found.low <= found.high <= max(values)
    random.shuffle(values)
    assert bootstrap(values) == found


def test_a_bootstrap_of_two_values_is_both_and_of_one_seed_the_same():
    assert bootstrap([0.25, 0.75]) == Interval(0.25, 0.75)  # each in a quarter of the samples
    values = [0.1, 0.5, 0.6, 0.7, 0.75, 0.95]
    assert bootstrap(values) == bootstrap(values)
    wide, narrow = bootstrap(values), bootstrap(values, level=0.5)
    assert wide is not None
    assert narrow is not None
    assert wide.low < narrow.low < narrow.high < wide.high


def test_of_many_values_the_bootstrap_is_what_the_normal_distribution_says():
    draw = random.Random(0)
    values = [draw.gauss(0.5, 0.1) for _ in range(200)]
    found, spread = bootstrap(values), deviation(values)
    assert found is not None
    assert spread is not None
    half = NormalDist().inv_cdf(0.975) * spread / math.sqrt(200)
    assert found.low == pytest.approx((mean(values) or 0) - half, abs=half / 10)
    assert found.high == pytest.approx((mean(values) or 0) + half, abs=half / 10)


def test_of_four_values_students_interval_holds_the_truth_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr("engram.measure.statistics.RESAMPLES", 200)
    draw, held = random.Random(1), {"student": 0, "bootstrap": 0}
    for _ in range(600):
        values = [draw.gauss(0, 1) for _ in range(4)]
        held["student"] += bool(
            paired(dict(enumerate(values)), dict.fromkeys(range(4), 0.0)).within_noise
        )
        found = bootstrap(values)
        held["bootstrap"] += found is not None and found.holds_zero
    assert 0.93 < held["student"] / 600 < 0.97
    assert 0.72 < held["bootstrap"] / 600 < 0.88  # too narrow, as its docstring says
