import random

import pytest

from engram.measure.statistics import bootstrap_interval, deviation, mean, paired


def test_mean_and_deviation_of_too_few_values_are_unknown():
    assert mean([]) is None
    assert deviation([1.0]) is None
    assert mean([1.0, 3.0]) == 2.0
    assert deviation([1.0, 3.0]) == pytest.approx(2**0.5)


def test_the_interval_is_the_same_each_time_and_leaves_the_global_generator_alone():
    state = random.getstate()
    values = [0.1, 0.3, -0.2, 0.4, 0.0, 0.2]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert random.getstate() == state


def test_the_interval_of_equal_values_is_a_point():
    assert bootstrap_interval([0.25] * 6) == (0.25, 0.25)


def test_the_interval_has_the_width_of_the_bootstrap_distribution():
    draw = random.Random(1)
    values = [draw.gauss(0, 1) for _ in range(400)]
    low, high = bootstrap_interval(values, resamples=2000)
    assert low < mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * deviation(values) / 20, rel=0.1)


def test_only_common_pairs_are_compared():
    ours = {(1, 0): 0.7, (2, 0): 0.8, (3, 0): 0.9}
    theirs = {(1, 0): 0.6, (2, 0): 0.7, (1, 1): 0.1}
    result = paired(ours, theirs)
    assert result.pairs == 2
    assert result.mean == pytest.approx(0.1)
    assert result.within_noise is False


def test_differences_of_both_signs_are_within_noise():
    ours = {i: 0.01 * (-1) ** i for i in range(6)}
    assert paired(ours, dict.fromkeys(ours, 0.0)).within_noise is True


def test_one_pair_has_a_difference_but_no_interval():
    result = paired({0: 0.5}, {0: 0.25})
    assert (result.pairs, result.mean, result.low, result.within_noise) == (1, 0.25, None, None)
    assert paired({0: 0.5}, {}).mean is None
