"""The mean, the deviation and the interval over a few lineages of one method."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from perdure.measure.statistics import deviation, mean, over_orders


@dataclass(frozen=True)
class Spread:
    """Statistics of `count` values; None if there are too few, or if one of them is unknown."""

    count: int
    mean: float | None = None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


def spread(
    values: Sequence[float | None], orders: Sequence[Hashable] = (), level: float = 0.95
) -> Spread:
    """Return the mean over orders, the deviation of all values (n - 1), and the interval.

    Args:
        values: the values, None for unknown ones.
        orders: the order of each value. Without it, all values have the same order.
        level: the level of the interval over orders, which needs at least three of them.
    """
    known = [value for value in values if value is not None]
    count = len(values)
    if mean(known) is None or len(known) < count:
        return Spread(count)
    orders = orders or [None] * count
    cells = {(order, n): v for n, (order, v) in enumerate(zip(orders, known, strict=True))}
    estimate = over_orders(cells, level)
    return Spread(
        count=count,
        mean=estimate.mean,
        deviation=deviation(known),
        low=estimate.interval.low if estimate.interval else None,
        high=estimate.interval.high if estimate.interval else None,
    )
