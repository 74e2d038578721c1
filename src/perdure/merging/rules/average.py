"""The weighted mean of the checkpoints (a model soup)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from perdure.errors import PerdureError
from perdure.merging.rule import Arrival, Arrived, Rule, State, added


@dataclass(frozen=True, kw_only=True)
class Average(Rule):
    """The weighted mean of the checkpoints; other tools call it linear, or a model soup.

        theta = sum_i w_i theta_i / sum_i w_i

    (Wortsman et al. 2022, 2203.05482). A weight that was not given is 1, so one more arrival moves
    the running mean of T checkpoints by 1 / (T + 1) of the way.

    State: the sum of the weighted task vectors.
    """

    paper: ClassVar[str | None] = "https://huggingface.co/papers/2203.05482"
    idempotent: ClassVar[bool] = True
    can_undo: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def arrive(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        return {"sum": added(state, "sum", arrival.factor * tau)}

    def _without(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        return {"sum": state["sum"] - arrival.factor * tau}

    def merged(self, state: State, history: Sequence[Arrived]) -> Tensor:
        return state["sum"] / _total(history)

    def coefficients(self, history: Sequence[Arrived]) -> list[float]:
        total = _total(history)
        return [_weight(arrived) / total for arrived in history]

    def check_weights(self, weights: Sequence[float | None]) -> None:
        total = _total([Arrived(weight, 0.0) for weight in weights])
        if weights and abs(total) < 1e-6:
            raise PerdureError("average: the weights add up to 0; use task_arithmetic for such")


def _weight(arrived: Arrived) -> float:
    return 1.0 if arrived.weight is None else arrived.weight


def _total(history: Sequence[Arrived]) -> float:
    return sum(_weight(arrived) for arrived in history)
