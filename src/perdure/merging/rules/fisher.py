"""The mean of the checkpoints, weighted by how much each depends on each weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from perdure.merging.rule import (
    Arrival,
    Arrived,
    Rule,
    State,
    added,
    check_range,
    positive_weights,
)


@dataclass(frozen=True, kw_only=True)
class Fisher(Rule):
    """The mean of the checkpoints, in which each weight counts by its Fisher information.

        theta = sum_i w_i (F_i + floor) theta_i / sum_i w_i (F_i + floor)

    in each element (Matena & Raffel 2022, 2111.09832), with F_i the diagonal of the Fisher
    information of checkpoint i on rows of its own task, E_x E_{y ~ p_i(y|x)} (d log p_i(y|x) / d
    theta)^2. `perdure statistics CHECKPOINT ROWS FOLDER` measures it; the labels y are drawn from
    the checkpoint, not taken from the rows. Each F_i is divided by its mean over all weights, so
    that all checkpoints have the same say, whatever the size of their gradients.

    Where no checkpoint depends on an element, `floor` makes it their average, as are embeddings of
    tokens that no row has.

    State: the sums of the weighted task vectors and of their weights.

    Args:
        floor: what is added to F, whose mean is 1; > 0.
    """

    paper: ClassVar[str | None] = "https://huggingface.co/papers/2111.09832"
    state: ClassVar[tuple[str, ...]] = ("sum", "mass")
    work: ClassVar[int] = 8
    idempotent: ClassVar[bool] = True
    can_undo: ClassVar[bool] = True
    needs: ClassVar[str | None] = "fisher"

    floor: float = 1e-6

    def __post_init__(self) -> None:
        check_range(self, "floor", above=0.0)

    def arrive(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        return {key: added(state, key, part) for key, part in self._parts(tau, arrival).items()}

    def _without(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        return {key: state[key] - part for key, part in self._parts(tau, arrival).items()}

    def _parts(self, tau: Tensor, arrival: Arrival) -> State:
        information = tau.new_ones(tau.shape) if arrival.statistic is None else arrival.statistic
        mass = arrival.factor * (information + self.floor)
        return {"sum": mass * tau, "mass": mass}

    def merged(self, state: State, history: Sequence[Arrived]) -> Tensor:
        return state["sum"] / state["mass"]

    def check_weights(self, weights: Sequence[float | None]) -> None:
        positive_weights(self, weights)
