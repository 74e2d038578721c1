"""The test of what was learned and what was lost, taken together."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats


sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import confirmed


pytestmark = pytest.mark.own


def drawn(n: int, k: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0.5, size=(n, k))


def test_one_score_alone_is_students_test():
    values = drawn(5, 1)
    expected = stats.ttest_1samp(values[:, 0], 0).pvalue
    assert confirmed.together(values) == pytest.approx(expected)


def test_two_scores_are_tested_by_their_best_combination():
    """T^2 is the square of the greatest t that a weighted sum of both scores can have."""
    values = drawn(6, 2)
    angles = np.linspace(0, np.pi, 20001)
    sums = values @ np.stack([np.cos(angles), np.sin(angles)])
    greatest = np.abs(stats.ttest_1samp(sums, 0, axis=0).statistic).max()
    expected = stats.f.sf(4 / 10 * greatest**2, 2, 4)
    assert confirmed.together(values) == pytest.approx(expected, rel=1e-5)
    assert confirmed.together(values * [1.0, 100.0]) == pytest.approx(expected, rel=1e-5)


def test_too_few_orders_or_the_same_score_twice_have_no_answer():
    assert confirmed.together(drawn(2, 2)) is None
    assert confirmed.together(np.repeat(drawn(6, 1), 2, axis=1)) is None


def test_the_table_has_a_line_for_each_other_line():
    lines = confirmed.table().splitlines()[2:]
    assert {line.split(" | ")[1] for line in lines} >= {"`replay`", "`replay_kl`"}
    assert all(line.split(" | ")[2] == "6" for line in lines)
