"""Task arithmetic: the task vectors are added to the base."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from perdure.merging.rule import Arrival, Arrived, Rule, State, added, check_range


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Rule):
    """Adds the task vectors to the base; a negative weight takes a skill away.

        theta = theta_0 + scale sum_i w_i (theta_i - theta_0)

    (Ilharco et al. 2023, 2212.04089). With several checkpoints, a scale of 1 usually goes too far:
    0.3 to 0.4 is common for 5 to 8 of them.

    State: the sum of the weighted task vectors.

    Args:
        scale: lambda, by which the sum is multiplied, >= 0.
    """

    paper: ClassVar[str | None] = "https://huggingface.co/papers/2212.04089"
    can_undo: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, "scale")

    def arrive(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        return {"sum": added(state, "sum", arrival.factor * tau)}

    def _without(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        return {"sum": state["sum"] - arrival.factor * tau}

    def merged(self, state: State, history: Sequence[Arrived]) -> Tensor:
        return self.scale * state["sum"]

    def coefficients(self, history: Sequence[Arrived]) -> list[float]:
        return [self.scale * (1.0 if a.weight is None else a.weight) for a in history]
