"""The statistics of the benchmarks' tables."""

import random
import sys
from pathlib import Path

import pytest


pytest.importorskip("scipy", reason="comes with the extra engram[benchmarks]")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from paired import deviation, mean, paired


def test_mean_and_deviation_of_too_few_values_are_unknown():
    assert mean([]) is None
    assert deviation([1.0]) is None
    assert mean([1.0, 3.0]) == 2.0
    assert deviation([1.0, 3.0]) == pytest.approx(2**0.5)


def test_the_interval_is_students():
    # t_{0.975} with 2 degrees of freedom is 4.3027; the values have deviation 1 and mean 2
    result = paired({0: 1.0, 1: 2.0, 2: 3.0}, dict.fromkeys(range(3), 0.0))
    assert result.mean == 2.0
    assert result.high - result.mean == pytest.approx(4.3027 / 3**0.5, abs=1e-3)


def test_the_interval_covers_what_it_says():
    draw, hits = random.Random(0), 0
    for _ in range(2000):
        ours = {i: draw.gauss(0.3, 1) for i in range(6)}
        result = paired(ours, dict.fromkeys(ours, 0.0))
        hits += result.low <= 0.3 <= result.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


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
