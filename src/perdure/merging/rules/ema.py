"""The exponential moving average of the checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from perdure.errors import PerdureError
from perdure.merging.rule import Arrival, Arrived, Rule, State, check_range


@dataclass(frozen=True, kw_only=True)
class Ema(Rule):
    """The exponential moving average of the checkpoints in the order of their arrival.

        theta <- (1 - w) theta + w theta_t,    from theta_0

    With `weight: null`, w = 1 / t, which is the running mean of the checkpoints without the base. A
    weight that is given for a checkpoint is the w of its arrival.

    TIME (Dziadzio et al. 2024, 2412.06712) asks what each new expert is trained from, and what is
    deployed: the base, the last expert, or what was merged so far. Its best policy is the moving
    average for both. In a lineage that is the order of work itself: each stage of `perdure merge`
    is what was merged so far, `perdure export` gives it to the next training (the policy of
    initialising), and the newest stage is the one to deploy. Experts that were trained from the
    base instead need no export; the two other policies of deploying are `weight: 1`, the last
    expert, and `weight: null`, the mean of all.

    State: the moving average.

    Args:
        weight: w, in [0, 1]; null is 1 / t.
    """

    state: ClassVar[tuple[str, ...]] = ("mean",)
    paper: ClassVar[str | None] = "https://huggingface.co/papers/2412.06712"
    order_matters: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    weight: float | None = 0.5

    def __post_init__(self) -> None:
        if self.weight is not None:
            check_range(self, "weight", most=1.0)

    def _weight(self, given: float | None, number: int) -> float:
        if given is not None:
            return given
        return 1.0 / number if self.weight is None else self.weight

    def arrive(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        weight = self._weight(arrival.weight, arrival.number)
        mean = state["mean"] if state else torch.zeros_like(tau)
        return {"mean": torch.lerp(mean, tau, weight)}

    def merged(self, state: State, history: Sequence[Arrived]) -> Tensor:
        return state["mean"]

    def coefficients(self, history: Sequence[Arrived]) -> list[float]:
        """w_i (1 - w_{i+1}) ... (1 - w_T) for each arrival i of T."""
        coefficients: list[float] = []
        for number, arrived in enumerate(history, start=1):
            weight = self._weight(arrived.weight, number)
            coefficients = [(1 - weight) * earlier for earlier in coefficients] + [weight]
        return coefficients

    def check_weights(self, weights: Sequence[float | None]) -> None:
        for weight in weights:
            if weight is not None and not 0 <= weight <= 1:
                raise PerdureError(f"ema: a weight must be in [0, 1], got {weight:g}")
