"""MagMax: the largest change of each element."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from perdure.merging.rule import Arrival, Arrived, Rule, State, check_range


@dataclass(frozen=True, kw_only=True)
class MagMax(Rule):
    """Takes, in each element, the change of the checkpoint that changed it most.

        k = argmax_i |w_i tau_i|,    theta = theta_0 + scale w_k tau_k

    (Marczak et al. 2024, 2407.06322). Of equal changes, the later one is taken. The authors train
    the checkpoints one after another, each from the last, but take all task vectors from the base.
    The largest of many changes is large also where none of them means anything, so the norm of the
    merged task vector grows with the number of checkpoints.

    State: the largest changes.

    Args:
        scale: lambda, by which the merged task vector is multiplied, >= 0; the authors use 0.5.
    """

    state: ClassVar[tuple[str, ...]] = ("largest",)
    paper: ClassVar[str | None] = "https://huggingface.co/papers/2407.06322"
    idempotent: ClassVar[bool] = True

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, "scale")

    def arrive(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        tau = arrival.factor * tau
        if not state:
            return {"largest": tau}
        largest = state["largest"]
        return {"largest": torch.where(tau.abs() >= largest.abs(), tau, largest)}

    def merged(self, state: State, history: Sequence[Arrived]) -> Tensor:
        return self.scale * state["largest"]
