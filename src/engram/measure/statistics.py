"""What a handful of repeated runs says: spread, intervals, and paired differences.

Methods that ran on the same (order, seed) pairs are compared by the differences within the pairs,
which cancels what a pair itself makes easy or hard. Where there are too few values to say
something, it is None.
"""

import math
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Paired:
    """A mean difference over `pairs` pairs, with its interval from two pairs on."""

    pairs: int
    mean: float | None
    interval: Interval | None

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval contains 0."""
        return None if self.interval is None else self.interval.holds_zero


def mean(values: Sequence[float]) -> float | None:
    """Exact and rounded once, so that the order plays no part; None for no values."""
    return fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation (n - 1); None below two values."""
    return stdev(values) if len(values) > 1 else None


def bootstrap(values: Sequence[float], level: float = 0.95, seed: int = 0) -> Interval | None:
    """The percentile bootstrap interval of the mean; None below two values.

    The means of 10,000 samples of n of the n values, drawn with replacement; the interval cuts off
    (1 - level) / 2 of them on either side. Assumes nothing of the distribution, but is too narrow
    for few values, because they show too little of it: by a factor of sqrt((n - 1) / n) and more,
    so that its 95 % cover about 87 % with six normal values and 82 % with four.
    """
    if len(values) < 2:
        return None
    draw, ordered = random.Random(seed), sorted(values)
    means = sorted(fmean(draw.choices(ordered, k=len(ordered))) for _ in range(RESAMPLES))
    cut = int((1 - level) / 2 * RESAMPLES)
    return Interval(means[cut], means[-1 - cut])


def paired(
    ours: Mapping[Hashable, float], theirs: Mapping[Hashable, float], level: float = 0.95
) -> Paired:
    """Ours minus theirs over the keys that both have, with Student's interval of their mean.

    mean -+ t_{n-1} s / sqrt(n), for differences that are close to normal. Not a bootstrap: of two
    to eight differences its interval is too narrow to call anything a difference; where all have
    one sign, which for four is one case in eight by chance alone, it never contains 0.
    """
    differences = [ours[key] - theirs[key] for key in ours if key in theirs]
    middle, spread, count = mean(differences), deviation(differences), len(differences)
    if middle is None or spread is None:
        return Paired(count, middle, None)
    half = student_quantile((1 + level) / 2, count - 1) * spread / math.sqrt(count)
    return Paired(count, middle, Interval(middle - half, middle + half))


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t with whole degrees of freedom, for a probability from 0.5 on.

    By bisection on the probability of |T| <= t.
    """
    wanted, low, high = 2 * probability - 1, 0.0, 1.0
    while _student_within(high, freedom) < wanted:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, freedom) < wanted else (low, middle)
    return high


def _student_within(t: float, freedom: int) -> float:
    """P(|T| <= t) as a finite sum, with tan a = t / sqrt(n) (Abramowitz & Stegun 26.7.3, 26.7.4).

    n odd:   2 / pi (a + sin a (cos a + 2/3 cos^3 a + ... + (2 4 ...)/(3 5 ...) cos^(n-2) a))
    n even:  sin a (1 + 1/2 cos^2 a + ... + (1 3 ...)/(2 4 ...) cos^(n-2) a)
    """
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = math.cos(angle) ** odd, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
