"""Metrics of a model's memory of probes, as pure functions of log-probabilities.

l(q; theta) is the log-probability of the answer of row q under the weights theta, summed over its
predicted tokens, in nats. A mean over nothing is None.
"""

from collections.abc import Sequence
from statistics import fmean, quantiles


CHANCE = {"recognition": 0.5, "recall": 0.0}  # the scores of a model that was taught nothing


def mean_loss(log_likelihoods: Sequence[float], tokens: Sequence[int]) -> float:
    """Return the held-out loss - sum_q l(q) / sum_q tokens(q), in nats per predicted token.

    Each token has the same weight, independent of its row, as in the forgetting metric of PEFT's
    method comparison (method_comparison/MetaMathQA/run.py).
    """
    return -sum(log_likelihoods) / sum(tokens)


def forgetting(loss: float | None, untouched: float | None) -> float | None:
    """Return the loss now minus that of the untouched base, in nats per token, as in PEFT.

    A value above 0 means forgetting.
    """
    return None if loss is None or untouched is None else loss - untouched


def recognition(taught: Sequence[float], foils: Sequence[float]) -> float | None:
    """Return the share of pairs in which the taught answer scores higher than its foil.

    A tie counts one half. This is two-alternative forced choice, with 0.5 for a model that cannot
    tell the two apart (Orhan 2023, https://huggingface.co/papers/2303.17557, whose code has no rule
    for ties). As in the paper, the scores are mean log-probabilities per token.
    """
    pairs = list(zip(taught, foils, strict=True))
    return fmean((a > b) + (a == b) / 2 for a, b in pairs) if pairs else None


def retention(now: float | None, learned: float | None, chance: float = 0.0) -> float | None:
    """Return (now - chance) / (learned - chance), the part of a score above chance that is left.

    It is 1 if the model still knows all that it knew at the stage that learned it, and 0 if it
    knows nothing. It is None if that stage was not above chance. The metric is our own, modelled on
    `retainability`.
    """
    if now is None or learned is None or learned <= chance:
        return None
    return (now - chance) / (learned - chance)


def effectivity(before: Sequence[float], learned: Sequence[float]) -> list[float]:
    """Return E(q) = l(q; learned) - l(q; before) for each row, in nats.

    Chang et al. 2024, https://huggingface.co/papers/2406.11813, definition 2. In the paper,
    `learned` is the best of the 50 steps after the row was seen; here it is the end of a stage.
    """
    return [b - a for a, b in zip(before, learned, strict=True)]


def retainability(
    before: Sequence[float], learned: Sequence[float], later: Sequence[float]
) -> list[float | None]:
    """Return R(q) = [l(q; later) - l(q; before)] / [l(q; learned) - l(q; before)] for each row.

    Chang et al. 2024, definition 3. It is 1 if the row is known as well as right after it was
    learned, and 0 if it is known no better than before. It is None if the denominator is not above
    0, because a row that was not learned cannot be retained. It has no unit, and is the same for
    sums and for means per token.
    """
    rows = zip(before, learned, later, strict=True)
    return [(c - a) / (b - a) if b > a else None for a, b, c in rows]


def without_outliers(values: Sequence[float], factor: float = 1.5) -> list[float]:
    """Return the values in [Q1 - factor (Q3 - Q1), Q3 + factor (Q3 - Q1)], in order.

    The quartiles are interpolated linearly. The default factor is that of Chang et al. 2024; it is
    2 in their published code.
    """
    if len(values) < 2:
        return list(values)
    first, _, third = quantiles(values, n=4, method="inclusive")
    reach = factor * (third - first)
    return [value for value in values if first - reach <= value <= third + reach]
