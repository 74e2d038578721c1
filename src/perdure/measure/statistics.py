"""Statistics of repeated runs: means over orders, intervals, paired differences, and Holm's method.

A cell is a run with one pair (order, seed). Runs of the same order are not independent, because the
order makes them all easier or harder, and an interval over cells would be too narrow for orders
that were not run. The order is therefore the unit: seeds are averaged within an order first, and
intervals are over the orders. With fewer than three orders there is no interval, and the numbers
hold only for these orders. Methods that ran with the same pairs are compared by the differences
within the pairs.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, TypeVar


SIGNIFICANCE = 0.05  # a result that is less probable than this by chance is beyond noise
FEWEST_ORDERS = 3  # the fewest orders for an interval
ROUNDING = 1e-12  # means that differ by less are equal
Pair = tuple[Any, Any]  # an order and a seed
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Estimate:
    """A mean over orders.

    Args:
        cells: the number of cells.
        orders: the number of orders.
        mean: the mean over the orders, None without cells.
        interval: Student's interval over the orders, None below three orders, and if all orders
            have the same mean, other than 0.
        p: the two-sided p of a t-test of whether the mean is 0, None where the interval is.
    """

    cells: int
    orders: int
    mean: float | None
    interval: Interval | None
    p: float | None

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval contains 0, None if there is no interval."""
        return None if self.interval is None else self.interval.holds_zero


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, or None if there are no values.

    The sum is exact and rounded once, so that the order of the values has no effect.
    """
    return fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1), or None below two values."""
    return stdev(values) if len(values) > 1 else None


def by_order(cells: Mapping[Pair, float]) -> dict[Hashable, float]:
    """Return the mean over the seeds of each order."""
    seeds: dict[Hashable, list[float]] = {}
    for (order, _), value in cells.items():
        seeds.setdefault(order, []).append(value)
    return {order: fmean(values) for order, values in seeds.items()}


def over_orders(cells: Mapping[Pair, float], level: float = 0.95) -> Estimate:
    """Return the mean of the orders' means, and Student's interval if there are three orders.

    The interval over n orders is mean -+ t_{n-1} s / sqrt(n), where s is the standard deviation
    (n - 1) of the orders' means. It is valid for few orders if their means are close to normal. If
    all means are equal and not zero, the orders do not tell how much a mean varies (scores are
    shares of a few rows, so that means are often equal by chance): interval and p are then unknown.
    """
    means = list(by_order(cells).values())
    center, spread, count = mean(means), deviation(means), len(means)
    if center is None or spread is None or count < FEWEST_ORDERS:
        return Estimate(cells=len(cells), orders=count, mean=center, interval=None, p=None)
    is_equal = spread < ROUNDING * max(1.0, *map(abs, means))
    if is_equal and any(means):
        return Estimate(cells=len(cells), orders=count, mean=center, interval=None, p=None)
    error = 0.0 if is_equal else spread / math.sqrt(count)
    half_width = student_quantile((1 + level) / 2, count - 1) * error
    p = 1 - _student_within(abs(center) / error, count - 1) if error else 1.0
    interval = Interval(center - half_width, center + half_width)
    return Estimate(cells=len(cells), orders=count, mean=center, interval=interval, p=p)


def paired(
    ours: Mapping[Pair, float], theirs: Mapping[Pair, float], level: float = 0.95
) -> Estimate:
    """Return `over_orders` of ours minus theirs, on the pairs (order, seed) that both have."""
    differences = {pair: ours[pair] - theirs[pair] for pair in ours if pair in theirs}
    return over_orders(differences, level)


def holm(probabilities: Mapping[Name, float | None]) -> dict[Name, float | None]:
    """Adjust probabilities for several comparisons with one baseline by Holm's step-down method.

    The k-th smallest of m probabilities, counted from 0, becomes the largest of (m - j) p_j over
    all j <= k, at most 1. If every comparison whose adjusted probability is below 0.05 is
    reported as a difference, the chance of one or more false reports is at most 5 %. An unknown
    probability stays unknown and is not counted in m. Holm 1979, "A simple sequentially rejective
    multiple test procedure".
    """
    known = sorted((p, index) for index, p in enumerate(probabilities.values()) if p is not None)
    adjusted: list[float | None] = [None] * len(probabilities)
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = highest
    return dict(zip(probabilities, adjusted, strict=True))


def can_show_a_loss(rows: int) -> bool:
    """Whether a fall of all rows would be beyond noise in the sign test; below 5 rows it is not."""
    return 0.5**rows < SIGNIFICANCE


def could_show_a_loss(change: Mapping[str, Any]) -> bool:
    """Whether a change of scores could have been beyond noise.

    If the score is 0 now, every row that was right has fallen, and no more than these could.

    Args:
        change: `rows`, `fell` and `after`, as in a stored verdict (`measure.verdict`).
    """
    return can_show_a_loss(change["fell"] if change["after"] == 0 else change["rows"])


def fell_unseen(first: float, change: Mapping[str, Any]) -> bool:
    """Whether a score is below an earlier one, on too few rows for a fall beyond noise.

    If the score is 0 now, no more rows can have fallen than were right then.

    Args:
        first: the earlier score of the rows.
        change: `rows` and `after`, as in a stored verdict (`measure.verdict`).
    """
    rows, after = change["rows"], change["after"]
    most = math.ceil(first * rows - ROUNDING) if after == 0 else rows
    return after < first and not can_show_a_loss(most)


def sign_test(worse: int, better: int) -> float:
    """Return the exact one-sided p of a sign test: how likely at least `worse` of the pairs fall.

    Only the pairs that differ count. If a fall and a rise are equally likely, the falls among
    n = worse + better pairs are binomial:

        p = sum_{k = worse}^{n} C(n, k) / 2^n

    This is McNemar's exact test for paired answers, on one side. Without pairs that differ it is 1.
    """
    count = worse + better
    if worse == count:  # a damaged file may tell of billions
        return math.ldexp(1.0, -count)
    total, ways = 0, 1  # C(n, n)
    for k in range(count, worse - 1, -1):
        total += ways
        ways = ways * k // (count - k + 1)  # C(n, k - 1)
    return total / 2**count


def student_quantile(probability: float, freedom: int) -> float:
    """Return a quantile of Student's t distribution, by bisection on the probability of |T| <= t.

    Args:
        probability: at least 0.5.
        freedom: the degrees of freedom, a whole number.
    """
    wanted, low, high = 2 * probability - 1, 0.0, 1.0
    while _student_within(high, freedom) < wanted:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, freedom) < wanted else (low, middle)
    return high


def _student_within(t: float, freedom: int) -> float:
    """Return P(|T| <= t) as a finite sum (Abramowitz & Stegun 26.7.3, 26.7.4).

    With tan a = t / sqrt(n):

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
