"""Intervals of few values: closed forms, another library's, and how often they hold the truth."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.measure.statistics import (
    SIGNIFICANCE,
    Estimate,
    Interval,
    deviation,
    holm,
    mean,
    over_orders,
    paired,
    sign_test,
    student_quantile,
)


pytestmark = pytest.mark.own


def test_of_nothing_nothing_is_said():
    assert mean([]) is None
    assert deviation([0.5]) is None
    assert over_orders({}) == Estimate(0, 0, None, None, None)
    alone = paired({(1, 0): 0.5}, {(1, 0): 0.25})
    assert alone == Estimate(cells=1, orders=1, mean=0.25, interval=None, p=None)
    assert alone.within_noise is None
    assert paired({(1, 0): 0.5}, {(2, 0): 0.5}).mean is None


def test_a_mean_and_a_deviation():
    assert mean([0.1, 0.2, 0.6]) == pytest.approx(0.3)
    assert deviation([1.0, 2.0, 4.0]) == pytest.approx(math.sqrt(7 / 3))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 9, 30, 101])
@pytest.mark.parametrize("probability", [0.5, 0.75, 0.95, 0.975, 0.9995])
def test_the_quantiles_are_those_of_scipy(freedom, probability):
    student = pytest.importorskip("scipy.stats").t
    expected = student.ppf(probability, freedom)
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (5, 0), (0, 5), (3, 3), (9, 2), (120, 80)])
def test_a_sign_test_is_the_binomial_test_of_scipy(worse, better):
    if worse + better == 0:
        assert sign_test(worse, better) == 1
        return
    binomtest = pytest.importorskip("scipy.stats").binomtest
    expected = binomtest(worse, worse + better, alternative="greater").pvalue
    assert sign_test(worse, better) == pytest.approx(expected, rel=1e-12)


def test_a_sign_test_of_billions_that_a_damaged_file_tells_of_takes_no_time():
    assert sign_test(2**31, 0) == sign_test(2**62, 0) == 0
    assert sign_test(1000, 0) == 0.5**1000


def test_paired_differences_in_closed_form():
    """Seeds are averaged within an order; only pairs that both have count."""
    ours = {("a", 0): 0.5, ("a", 1): 1.0, ("b", 0): 0.75, ("c", 0): 1.0, ("c", 1): 0.9}
    theirs = {("c", 0): 0.5, ("b", 0): 0.5, ("b", 1): 0.1, ("a", 1): 0.5, ("a", 0): 1.0}
    difference = paired(ours, theirs)  # by order: a 0, b 0.25, c 0.5
    assert (difference.cells, difference.orders, difference.mean) == (4, 3, 0.25)
    half = 4.302652729911275 * 0.25 / math.sqrt(3)  # t of two degrees
    assert difference.interval is not None
    assert difference.interval.low == pytest.approx(0.25 - half)
    assert difference.interval.high == pytest.approx(0.25 + half)
    assert difference.within_noise is True
    assert difference.p == pytest.approx(0.22540333075851657)  # of t = sqrt(3)


def test_with_fewer_than_three_orders_there_is_no_interval_however_many_seeds():
    cells = {(order, seed): 0.5 + order / 10 + seed / 100 for order in (1, 2) for seed in range(9)}
    estimate = over_orders(cells)
    assert (estimate.cells, estimate.orders, estimate.interval, estimate.p) == (18, 2, None, None)
    assert estimate.mean == pytest.approx(0.69)
    three = over_orders(cells | {(3, 0): 0.8})  # a single seed of an order counts as much
    assert three.interval is not None
    assert three.mean == pytest.approx((0.64 + 0.74 + 0.8) / 3)


def test_a_difference_that_is_no_noise_and_one_of_nothing_at_all():
    steady = paired(
        {(0, 0): 0.7, (1, 0): 0.8, (2, 0): 0.9}, {(0, 0): 0.5, (1, 0): 0.61, (2, 0): 0.7}
    )
    assert steady.within_noise is False
    same = paired({(n, 0): 0.7 for n in range(3)}, {(n, 0): 0.7 for n in range(3)})
    assert same.interval == Interval(0, 0)
    assert (same.within_noise, same.p) == (True, 1)
    sure = paired({(n, 0): 0.75 for n in range(3)}, {(n, 0): 0.5 for n in range(3)})
    assert (sure.interval, sure.p) == (None, None)  # equal, so nothing says how much they vary


@settings(max_examples=30)
@given(st.lists(st.integers(-64, 64).map(lambda n: n / 64), min_size=3, max_size=6, unique=True))
def test_interval_and_probability_are_those_of_scipys_t_test(values):
    stats = pytest.importorskip("scipy.stats")
    estimate = over_orders({(n, 0): v for n, v in enumerate(values)})
    expected = stats.ttest_1samp(values, 0.0)
    interval = expected.confidence_interval(0.95)
    assert estimate.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert estimate.interval is not None
    assert estimate.interval.low == pytest.approx(interval.low, rel=1e-9, abs=1e-9)
    assert estimate.interval.high == pytest.approx(interval.high, rel=1e-9, abs=1e-9)


def test_holms_correction_in_closed_form():
    adjusted = holm({"a": 0.01, "b": 0.04, "c": None, "d": 0.03, "e": 0.005})
    # sorted: 4 * 0.005, 3 * 0.01, 2 * 0.03, then 1 * 0.04, which may not be below the one before
    assert adjusted == pytest.approx({"e": 0.02, "a": 0.03, "d": 0.06, "b": 0.06, "c": None})
    assert holm({}) == {}
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.04}) == {"a": 0.04}


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_rejections_are_those_of_the_step_down_procedure(probabilities):
    """From the smallest on, as long as p_(k) < 0.05 / (m - k)."""
    named = dict(enumerate(probabilities))
    rejected = set()
    for rank, name in enumerate(sorted(named, key=lambda n: named[n])):
        if not named[name] * (len(named) - rank) < 0.05:
            break
        rejected.add(name)
    adjusted = holm(named)
    assert {name for name, p in adjusted.items() if p is not None and p < 0.05} == rejected


def test_an_interval_that_only_touches_zero_contains_it():
    assert Interval(0.0, 0.5).holds_zero
    assert Interval(-0.5, 0.0).holds_zero
    assert not Interval(0.1, 0.5).holds_zero
    assert not Interval(-0.5, -0.1).holds_zero


def test_an_interval_over_orders_covers_new_orders_as_often_as_it_says_and_over_cells_does_not():
    """Orders that differ by as much as seeds do: 600 comparisons of 4 orders x 3 seeds.

    The truth is 0. An interval over the 12 cells as if they were independent covers it too seldom.
    """
    draw, covered, trials = random.Random(1), {"orders": 0, "cells": 0}, 600
    for _ in range(trials):
        orders = [draw.gauss(0, 1) for _ in range(4)]
        cells = {(n, s): orders[n] + draw.gauss(0, 1) for n in range(4) for s in range(3)}
        apart = {((order, seed), 0): value for (order, seed), value in cells.items()}
        covered["orders"] += bool(over_orders(cells).within_noise)
        covered["cells"] += bool(over_orders(apart).within_noise)
    assert 0.93 < covered["orders"] / trials < 0.97  # a standard error of 0.009
    assert covered["cells"] / trials < 0.87


def test_without_a_difference_holm_finds_one_in_twenty_tables_and_plain_intervals_in_most():
    draw, false_reports, tables = random.Random(2), {"holm": 0, "plain": 0}, 300
    for _ in range(tables):
        lines = [over_orders({(n, 0): draw.gauss(0, 1) for n in range(3)}).p for _ in range(10)]
        probabilities = dict(enumerate(lines))
        false_reports["plain"] += any(p is not None and p < 0.05 for p in probabilities.values())
        false_reports["holm"] += any(
            p is not None and p < 0.05 for p in holm(probabilities).values()
        )
    assert false_reports["holm"] / tables < 0.09
    assert false_reports["plain"] / tables > 0.3


def test_equal_differences_are_no_evidence_of_how_much_they_vary():
    """Scores are shares of a few rows, so that three equal differences are common by chance."""
    equal = over_orders({(n, 0): 0.1 + 0.2 - 0.3 + 0.01 for n in range(3)} | {(3, 0): 0.01})
    assert (equal.interval, equal.p, equal.within_noise) == (None, None, None)
    assert equal.mean == pytest.approx(0.01)
    none = over_orders({(n, 0): 0.0 for n in range(3)})
    assert (none.p, none.within_noise) == (1.0, True)
    assert holm({"equal": equal.p, "none": none.p}) == {"equal": None, "none": 1.0}


def test_few_false_differences_on_a_coarse_grid_of_scores():
    draw, false = random.Random(5), 0
    for _ in range(200):
        lines = {}
        for line in range(15):
            scores = [round(draw.gauss(0, 0.01) / 0.01) * 0.01 for _ in range(3)]
            lines[line] = over_orders({(n, 0): score for n, score in enumerate(scores)}).p
        false += any((p or 1.0) < SIGNIFICANCE for p in holm(lines).values() if p is not None)
    assert false <= 0.08 * 200  # 5 % and its error
