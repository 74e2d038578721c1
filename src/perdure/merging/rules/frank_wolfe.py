"""Frank-Wolfe merging: how much of a new checkpoint is taken is learned on a few rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from perdure.errors import PerdureError
from perdure.merging.rule import Arrival, Arrived, Rule, State, check_range


class Trial(NamedTuple):
    """A step of the search of a weight.

    Args:
        weight: the share of the new checkpoint at which the loss was measured.
        loss: the mean loss on the rows there.
        slope: its derivative in the weight, <gradient, theta_t - theta>.
    """

    weight: float
    loss: float
    slope: float


@dataclass(frozen=True, kw_only=True)
class FrankWolfe(Rule):
    """Moves from what was merged so far to the new checkpoint, as far as the loss on rows falls.

        theta <- theta + w (theta_t - theta),    from theta_0
        w <- w + 2 / (k + 2) (s - w),    k = 0, 1, ..., steps - 1,    from w = 0
        s = argmin_{s in {0, 1}} s <grad L(theta + w (theta_t - theta)), theta_t - theta>

    The w of each arrival is found by the Frank-Wolfe algorithm on the segment between the two
    (FW-Merging, Chen et al. 2025, 2503.12649), with L the loss on the rows of `--rows`, a few of
    all tasks that the model shall do. The steps are long at first, and L is no convex function of
    w, so of all weights on the way, with 0 among them, the one of the least L is taken: a
    checkpoint that does not lower L gets the weight 0. All weights of theta, with the base's, are
    >= 0 and add up to 1, and the result names them.

    The paper searches among all checkpoints at once, in each step again, which is no fold: they
    would all have to be kept. Here the same step is taken between what was merged and what
    arrives, so that only the model, its gradient and one tensor of each checkpoint are in memory.
    The step takes the true inner product of the algorithm, where the authors' code takes a sum of
    cosines of tensors.

    A weight that is given for a checkpoint is the w of its arrival, and needs no rows.

    State: the merged task vector.

    Args:
        steps: the most steps of a search, >= 1; each is one gradient of the loss on all rows, and
            the weight after the last is measured as well.
    """

    paper: ClassVar[str | None] = "https://huggingface.co/papers/2503.12649"
    state: ClassVar[tuple[str, ...]] = ("merged",)
    order_matters: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    steps: int = 10

    def __post_init__(self) -> None:
        check_range(self, "steps", least=1)

    def arrive(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        weight = _weight(arrival.weight, arrival.number)
        return {"merged": torch.lerp(state["merged"], tau, weight) if state else weight * tau}

    def merged(self, state: State, history: Sequence[Arrived]) -> Tensor:
        return state["merged"]

    def coefficients(self, history: Sequence[Arrived]) -> list[float]:
        """w_i (1 - w_{i+1}) ... (1 - w_T) for each arrival i of T; the base has the rest to 1."""
        coefficients: list[float] = []
        for number, arrived in enumerate(history, start=1):
            weight = _weight(arrived.weight, number)
            coefficients = [(1 - weight) * earlier for earlier in coefficients] + [weight]
        return coefficients

    def check_weights(self, weights: Sequence[float | None]) -> None:
        for weight in weights:
            if weight is not None and not 0 <= weight <= 1:
                raise PerdureError(f"frank_wolfe: a weight must be in [0, 1], got {weight:g}")

    def search(self, measure: Callable[[float], tuple[float, float]]) -> tuple[float, list[Trial]]:
        """Return the weight of the least loss among those that the steps lead to, and the steps.

        Args:
            measure: returns the loss at a weight, and its derivative in the weight.
        """
        weight, trials = 0.0, []
        for step in range(self.steps):
            trials.append(Trial(weight, *measure(weight)))
            vertex = 1.0 if trials[-1].slope < 0 else 0.0
            if vertex == weight:  # the duality gap (w - s) dL/dw is zero: this is the minimum
                break
            weight += 2.0 / (step + 2.0) * (vertex - weight)
        else:
            trials.append(Trial(weight, *measure(weight)))
        return min(trials, key=lambda trial: trial.loss).weight, trials


def _weight(given: float | None, number: int) -> float:
    """Return w of the k-th arrival; the rule is never used without one, and 1 / k is the mean."""
    return 1.0 / number if given is None else given
