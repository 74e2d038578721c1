"""What a handful of repeated runs says: spread, and paired differences with their interval.

Pure functions of plain numbers. Two methods that ran on the same (order, seed) pairs are compared
by the differences within the pairs, which cancels what the pair itself makes easy or hard.
"""

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Paired:
    """A mean difference over `pairs` pairs, and its interval; None where pairs are too few."""

    pairs: int
    mean: float | None
    low: float | None
    high: float | None

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval contains 0."""
        return None if self.low is None or self.high is None else self.low <= 0 <= self.high


def mean(values: Sequence[float]) -> float | None:
    """None for no values."""
    return fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation (n - 1); None below two values."""
    return stdev(values) if len(values) > 1 else None


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean (Efron 1979), from a generator of its own.

    The middle `level` of the means of `resamples` draws of len(values) values with replacement. It
    is somewhat too narrow for few values: with six, 95 % covers about 87 % of normal draws.
    """
    draw, count = random.Random(seed), len(values)
    means = sorted(fmean(draw.choices(values, k=count)) for _ in range(resamples))
    cut = round((1 - level) / 2 * (resamples - 1))
    return means[cut], means[-1 - cut]


def paired(
    ours: Mapping[Hashable, float], theirs: Mapping[Hashable, float], level: float = 0.95
) -> Paired:
    """Ours minus theirs over the keys that both have; the interval needs two pairs."""
    differences = [ours[key] - theirs[key] for key in ours if key in theirs]
    low, high = bootstrap_interval(differences, level) if len(differences) > 1 else (None, None)
    return Paired(len(differences), mean(differences), low, high)
