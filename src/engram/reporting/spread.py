"""A mean, its spread and its interval over a few lineages of one method."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from engram.measure.statistics import deviation, mean, over_orders


@dataclass(frozen=True)
class Spread:
    """Of `count` values; None where they are too few, or one of them is unknown."""

    count: int
    mean: float | None = None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


def spread(
    values: Sequence[float | None], orders: Sequence[Hashable] = (), level: float = 0.95
) -> Spread:
    """The mean over orders, the deviation of all values (n - 1), and the interval over orders.

    `orders` names the order of each value; they are all of one if it is left out. There is no
    interval below three orders.
    """
    known = [value for value in values if value is not None]
    count = len(values)
    if mean(known) is None or len(known) < count:
        return Spread(count)
    named = orders or [None] * count
    cells = {(order, n): v for n, (order, v) in enumerate(zip(named, known, strict=True))}
    found = over_orders(cells, level)
    low, high = (found.interval.low, found.interval.high) if found.interval else (None, None)
    return Spread(count, found.mean, deviation(known), low, high)
