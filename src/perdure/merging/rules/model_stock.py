"""Model Stock: the mean of the checkpoints, pulled to the base where they disagree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from perdure.merging.magnitude import dot, norm
from perdure.merging.rule import Arrival, Arrived, Rule, State, added


@dataclass(frozen=True, kw_only=True)
class ModelStock(Rule):
    """The mean of the checkpoints, pulled towards the base in the tensors where they disagree.

        c = the mean cosine of all pairs of task vectors,    t = T c / (1 + (T - 1) c)
        theta = t mean_i theta_i + (1 - t) theta_0

    in each tensor (Jang et al. 2024, 2403.19522), with t kept in [0, 1]. It is meant for runs of
    one task, whose task vectors agree. Of one checkpoint, t is 1.

    With u_i = tau_i / |tau_i|, c = (|sum_i u_i|^2 - T) / (T (T - 1)), so pairs need not be kept.

    State: the sums of the task vectors and of the same at length 1.
    """

    paper: ClassVar[str | None] = "https://huggingface.co/papers/2403.19522"
    state: ClassVar[tuple[str, ...]] = ("sum", "units")
    scalars: ClassVar[tuple[str, ...]] = ("directions",)
    idempotent: ClassVar[bool] = True
    can_undo: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    weighted: ClassVar[bool] = False

    def arrive(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        unit = _unit(tau)
        return {
            "sum": added(state, "sum", tau),
            "units": added(state, "units", unit),
            # A task vector of zero has no direction: it counts as one at right angles to all.
            "directions": added(state, "directions", torch.tensor(1.0 if unit.any() else 0.0)),
        }

    def _without(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        unit = _unit(tau)
        directions = state["directions"] - torch.tensor(1.0 if unit.any() else 0.0)
        return {
            "sum": state["sum"] - tau,
            "units": state["units"] - unit,
            "directions": directions,
        }

    def merged(self, state: State, history: Sequence[Arrived]) -> Tensor:
        count = len(history)
        mean = state["sum"] / count
        if count == 1:
            return mean
        units = state["units"]
        pairs = dot(units, units) - state["directions"].item()
        cosine = pairs / (count * (count - 1))
        below = 1 + (count - 1) * cosine
        share = count * cosine / below if below > 0 else 0.0
        return min(1.0, max(0.0, share)) * mean


def _unit(tau: Tensor) -> Tensor:
    length = norm(tau)
    return tau / length if length > 0 else torch.zeros_like(tau)
