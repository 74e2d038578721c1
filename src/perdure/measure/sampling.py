"""Scoring old tasks on a sample of their test rows, so that scoring costs the same at every stage.

The rows of a task are sampled without replacement, and a smaller sample of the same task is part of
a larger one. The score of a sample is compared with what the model answered to the same rows right
after it had learned the task, so that a sample of easy rows does not look like a gain, nor one of
hard rows like forgetting.
"""

import math
import random
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean

from perdure.measure.statistics import Interval
from perdure.seeds import derive


def shares(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """Divide `total` rows evenly over tasks, given the number of test rows of each.

    What a task with few rows does not need is divided over the others. If there are more tasks than
    rows, the tasks that come first get none.
    """
    left, result = total, dict.fromkeys(counts, 0)
    for number, task in enumerate(sorted(counts, key=lambda name: counts[name])):
        result[task] = min(counts[task], left // (len(counts) - number))
        left -= result[task]
    return result


def sampled_rows(task: str, count: int, share: int, seed: int) -> list[int]:
    """Return the indices of `share` of a task's `count` test rows, in order.

    They are the first ones in a random order that (seed, task) decides.
    """
    order = list(range(count))
    random.Random(derive(seed, "sampled rows", task)).shuffle(order)
    return sorted(order[:share])


def estimated(now: Sequence[float], first: Sequence[float], first_mean: float) -> float:
    """Estimate the mean score of all test rows from a sample of them.

        mean(now) + slope (first_mean - mean(first)),   0 <= estimate <= 1

    This is the regression estimator (Cochran 1977, Sampling Techniques, chapter 7), with the least
    squares slope of `now` on `first`, limited to 0 to 1, or 1 if all of `first` are equal. If no
    sampled row has changed, it is `first_mean`. If some have, and all score 0 now, it is 0.

    Args:
        now: the scores of the sampled rows, 0 to 1.
        first: the scores of the same rows right after the task was learned.
        first_mean: the mean of all the task's test rows at that time.
    """
    if any(first) and not any(now):
        return 0.0
    now_mean, mean = fmean(now), fmean(first)
    spread = sum((x - mean) ** 2 for x in first)
    slope = 1.0
    if spread:
        products = ((x - mean) * (y - now_mean) for x, y in zip(first, now, strict=True))
        slope = min(1.0, max(0.0, sum(products) / spread))
    return min(1.0, max(0.0, now_mean + slope * (first_mean - mean)))


def sampling_interval(score: float, rows: int, of: int, level: float = 0.95) -> Interval:
    """Return Wilson's interval for the mean score of `of` test rows of which `rows` were asked.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    with n = rows (of - 1) / (of - rows), because the rows are drawn without replacement: a sample
    of all rows has no error. It holds for scores of 0 and 1 and is too wide for others, and for a
    score that `estimated` has made more precise.
    """
    if rows == of:
        return Interval(score, score)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = z**2 * (of - rows) / (rows * (of - 1))  # z^2 / n
    half_width = math.sqrt(share * score * (1 - score) + share**2 / 4)
    low, high = score + share / 2 - half_width, score + share / 2 + half_width
    low, high = low / (1 + share), high / (1 + share)
    return Interval(max(0.0, min(score, low)), min(1.0, max(score, high)))
