"""What a handful of repeated runs says: spread, and paired differences with their interval.

Two methods that ran on the same (order, seed) pairs are compared by the differences within the
pairs, which cancels what the pair itself makes easy or hard.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from scipy.stats import t as student


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


def paired(
    ours: Mapping[Hashable, float], theirs: Mapping[Hashable, float], level: float = 0.95
) -> Paired:
    """Ours minus theirs over the keys that both have, with Student's interval of their mean.

    mean -+ t_{n-1} s / sqrt(n), for differences that are close to normal; a bootstrap of six
    values would be too narrow (its 95 % covers about 87 %).
    """
    differences = [ours[key] - theirs[key] for key in ours if key in theirs]
    middle, spread, count = mean(differences), deviation(differences), len(differences)
    if middle is None or spread is None:
        return Paired(count, middle, None, None)
    half = float(student.ppf((1 + level) / 2, count - 1)) * spread / sqrt(count)
    return Paired(count, middle, middle - half, middle + half)
