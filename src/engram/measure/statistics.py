"""What repeated runs say: means over orders, their intervals, paired differences, and Holm.

A cell is a run on a pair (order, seed). Seeds within one order share what the order makes easy or
hard, so cells are not independent, and an interval over cells is too narrow for the orders that
were not run. The order is the unit: seeds are averaged within an order first, and intervals are
over the orders. With fewer than three orders there is none: the numbers hold on these orders.
Methods that ran on the same pairs are compared by the differences within the pairs.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, TypeVar


FEWEST_ORDERS = 3  # for an interval
Pair = tuple[Any, Any]  # an order and a seed
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Estimate:
    """A mean over `orders` orders, of `cells` cells in all.

    `interval` is Student's over the orders and `p` the two-sided probability of a mean this far
    from 0 if the truth is 0; both None below three orders.
    """

    cells: int
    orders: int
    mean: float | None
    interval: Interval | None
    p: float | None

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval contains 0; None where there is none."""
        return None if self.interval is None else self.interval.holds_zero


def mean(values: Sequence[float]) -> float | None:
    """Exact and rounded once, so that the order plays no part; None for no values."""
    return fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation (n - 1); None below two values."""
    return stdev(values) if len(values) > 1 else None


def by_order(cells: Mapping[Pair, float]) -> dict[Hashable, float]:
    """The mean over the seeds of each order."""
    seeds: dict[Hashable, list[float]] = {}
    for (order, _), value in cells.items():
        seeds.setdefault(order, []).append(value)
    return {order: fmean(values) for order, values in seeds.items()}


def over_orders(cells: Mapping[Pair, float], level: float = 0.95) -> Estimate:
    """The mean of the orders' means, with Student's interval over the n orders from three on.

    mean -+ t_{n-1} s / sqrt(n), with s the standard deviation (n - 1) of the orders' means. It is
    right for few orders as long as their means are close to normal.
    """
    means = list(by_order(cells).values())
    middle, spread, count = mean(means), deviation(means), len(means)
    if middle is None or spread is None or count < FEWEST_ORDERS:
        return Estimate(len(cells), count, middle, None, None)
    error = spread / math.sqrt(count)
    half = student_quantile((1 + level) / 2, count - 1) * error
    interval = Interval(middle - half, middle + half)
    if error == 0:
        return Estimate(len(cells), count, middle, interval, float(middle == 0))
    p = 1 - _student_within(abs(middle) / error, count - 1)
    return Estimate(len(cells), count, middle, interval, p)


def paired(
    ours: Mapping[Pair, float], theirs: Mapping[Pair, float], level: float = 0.95
) -> Estimate:
    """Ours minus theirs on the pairs (order, seed) that both have, as `over_orders`."""
    differences = {pair: ours[pair] - theirs[pair] for pair in ours if pair in theirs}
    return over_orders(differences, level)


def holm(probabilities: Mapping[Name, float | None]) -> dict[Name, float | None]:
    """Holm's step-down: the probabilities adjusted for so many comparisons with one baseline.

    The k-th smallest of m, from 0, becomes the largest of (m - j) p_j over all j <= k, at most 1.
    What is below 0.05 then differs, and the chance that one or more of such findings is wrong is at
    most 5 %. An unknown probability stays unknown and is not counted. (Holm 1979, "A simple
    sequentially rejective multiple test procedure".)
    """
    known = sorted((p, n) for n, p in enumerate(probabilities.values()) if p is not None)
    adjusted: list[float | None] = [None] * len(probabilities)
    highest = 0.0
    for rank, (p, n) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[n] = highest
    return dict(zip(probabilities, adjusted, strict=True))


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
