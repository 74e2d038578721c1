"""Model breadcrumbs: drop the largest and the smallest changes, then add."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from perdure.errors import PerdureError
from perdure.merging.magnitude import kept, kth_largest, magnitudes
from perdure.merging.rule import Arrival, Arrived, Pieces, Rule, State, added, check_range


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(Rule):
    """Drops the largest and the smallest changes of each tensor, then adds the others.

        tau'_i = tau_i where |tau_i| is below the `gamma` largest of the tensor, and among the
                 `density` next largest, else 0
        theta = theta_0 + scale sum_i w_i tau'_i

    (Davari & Belilovsky 2023, 2312.06795). With a `gamma` that is less than half an element, none
    of the largest is dropped. Norms and biases are not thinned.

    State: the sum of the weighted task vectors.

    Args:
        density: the share of the changes that is kept, in (0, 1].
        gamma: the share of the largest changes that is dropped, in [0, 1); density + gamma <= 1.
        scale: lambda, by which the sum is multiplied, >= 0.
    """

    paper: ClassVar[str | None] = "https://huggingface.co/papers/2312.06795"
    can_undo: ClassVar[bool] = True

    density: float = 0.9
    gamma: float = 0.01
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, "density", above=0.0, most=1.0)
        check_range(self, "gamma", most=1.0)
        check_range(self, "scale")
        if self.density + self.gamma > 1.0 + 1e-9:
            total = self.density + self.gamma
            raise PerdureError(f"breadcrumbs: density + gamma must be <= 1, got {total:g}")

    def look(self, pieces: Pieces, arrival: Arrival) -> dict[str, float]:
        if arrival.role == "vector":
            return {"least": 0.0, "most": float("inf")}
        count = torch.Size(arrival.shape).numel()
        dropped = min(round(self.gamma * count), count - 1)
        last = min(count, dropped + kept(self.density, count))
        return {
            "least": kth_largest(pieces, last),
            "most": kth_largest(pieces, dropped + 1) if dropped else float("inf"),
        }

    def arrive(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        return {"sum": added(state, "sum", arrival.factor * _thinned(tau, arrival))}

    def _without(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        return {"sum": state["sum"] - arrival.factor * _thinned(tau, arrival)}

    def merged(self, state: State, history: Sequence[Arrived]) -> Tensor:
        return self.scale * state["sum"]


def _thinned(tau: Tensor, arrival: Arrival) -> Tensor:
    """Return the task vector with the changes between the two limits, which are kept as well."""
    size = magnitudes(tau)
    keep = (size >= arrival.seen["least"]) & (size <= arrival.seen["most"])
    return torch.where(keep, tau, 0.0)
