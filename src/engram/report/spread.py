"""A mean, its spread and its interval over a few lineages of one method."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from engram.measure.statistics import deviation, mean, student_quantile


@dataclass(frozen=True)
class Spread:
    """Of `count` values; None where they are too few, or one of them is unknown."""

    count: int
    mean: float | None = None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


def spread(values: Sequence[float | None], level: float = 0.95) -> Spread:
    """The mean, the deviation (n - 1), and Student's interval, mean -+ t_{n-1} s / sqrt(n)."""
    known = [value for value in values if value is not None]
    count, middle, wide = len(values), mean(known), deviation(known)
    if middle is None or len(known) < count:
        return Spread(count)
    if wide is None:
        return Spread(count, middle)
    half = student_quantile((1 + level) / 2, count - 1) * wide / sqrt(count)
    return Spread(count, middle, wide, middle - half, middle + half)
