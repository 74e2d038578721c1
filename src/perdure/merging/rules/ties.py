"""TIES: trim, elect a sign, and take the mean of those that agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from perdure.merging.magnitude import kept, kth_largest, magnitudes
from perdure.merging.rule import (
    Arrival,
    Arrived,
    Pieces,
    Rule,
    State,
    added,
    check_range,
    positive_weights,
)


# A smaller share of a weight that is left after an arrival was taken out is a rounding error of it,
# as in (0.7 + 0.1) - 0.7 - 0.1, and must not divide anything.
RESIDUE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Ties(Rule):
    """Keeps the largest changes of each checkpoint, elects a sign, and averages what agrees.

        tau'_i = tau_i where |tau_i| is among the `density` largest of the tensor, else 0
        s = sign(sum_i w_i tau'_i)
        theta = theta_0 + scale sum_{i: sign(tau'_i) = s} w_i tau'_i / sum_{the same i} w_i

    (Yadav et al. 2023, 2306.01708), in each element. Of equal masses, the positive one is elected.
    As in mergekit and PEFT, each tensor is trimmed on its own; the paper trims the whole model at
    once. Equal magnitudes at the limit are all kept. Norms and biases are not trimmed.

    State: the sums of the positive and of the negative changes, and the sums of their weights. They
    give exactly what the checkpoints give at once.

    Args:
        density: the share of the changes that is kept, in (0, 1].
        scale: lambda, by which the merged task vector is multiplied, >= 0.
    """

    paper: ClassVar[str | None] = "https://huggingface.co/papers/2306.01708"
    state: ClassVar[tuple[str, ...]] = (
        "positive",
        "negative",
        "positive_weight",
        "negative_weight",
    )
    idempotent: ClassVar[bool] = True
    can_undo: ClassVar[bool] = True

    density: float = 0.2
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, "density", above=0.0, most=1.0)
        check_range(self, "scale")

    def look(self, pieces: Pieces, arrival: Arrival) -> dict[str, float]:
        if arrival.role == "vector" or self.density == 1.0:
            return {"least": 0.0}
        count = torch.Size(arrival.shape).numel()
        return {"least": kth_largest(pieces, kept(self.density, count))}

    def arrive(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        return {key: added(state, key, part) for key, part in self._parts(tau, arrival).items()}

    def _without(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        left = {key: state[key] - part for key, part in self._parts(tau, arrival).items()}
        for sign in ("positive", "negative"):
            weight = f"{sign}_weight"
            is_residue = left[weight] <= RESIDUE * state[weight]
            left |= {key: left[key].masked_fill(is_residue, 0.0) for key in (sign, weight)}
        return left

    def _parts(self, tau: Tensor, arrival: Arrival) -> State:
        large = magnitudes(tau) >= arrival.seen["least"]
        positive, negative = large & (tau > 0), large & (tau < 0)
        weighted = arrival.factor * tau
        return {
            "positive": torch.where(positive, weighted, 0.0),
            "negative": torch.where(negative, weighted, 0.0),
            "positive_weight": arrival.factor * positive.to(tau.dtype),
            "negative_weight": arrival.factor * negative.to(tau.dtype),
        }

    def merged(self, state: State, history: Sequence[Arrived]) -> Tensor:
        is_positive = state["positive"] + state["negative"] >= 0
        total = torch.where(is_positive, state["positive"], state["negative"])
        weight = torch.where(is_positive, state["positive_weight"], state["negative_weight"])
        return self.scale * torch.where(weight > 0, total / weight.clamp_min(1e-30), 0.0)

    def check_weights(self, weights: Sequence[float | None]) -> None:
        positive_weights(self, weights)
