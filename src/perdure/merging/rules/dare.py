"""DARE: drop changes at random and rescale the others, then add."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from perdure.errors import PerdureError
from perdure.merging.draws import uniform
from perdure.merging.rule import Arrival, Arrived, Rule, State, added, check_range
from perdure.seeds import derive


@dataclass(frozen=True, kw_only=True)
class Dare(Rule):
    """Drops changes at random and rescales the others, then adds as task arithmetic does.

        tau'_i = m_i tau_i / density,    m_i ~ Bernoulli(density)
        theta = theta_0 + scale sum_i w_i tau'_i

    (Yu et al. 2023, 2311.03099; mergekit's dare_linear, but always rescaled by 1 / density). What
    is dropped of an element depends only on the seed, the checkpoint's files, and the element's
    place, so it is the same in any order of arrival and on any number of threads; the same weights
    in other shards are other files. Norms and biases are not dropped.

    State: the sum of the weighted task vectors.

    Args:
        density: the share of the changes that is kept, in (0, 1]; the paper's 1 - p.
        scale: lambda, by which the sum is multiplied, >= 0.
        seed: the seed of what is dropped, >= 0.
    """

    paper: ClassVar[str | None] = "https://huggingface.co/papers/2311.03099"
    work: ClassVar[int] = 14  # random numbers are of 64 bits
    can_undo: ClassVar[bool] = True

    density: float = 0.1
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, "density", above=0.0, most=1.0)
        check_range(self, "scale")
        if self.seed < 0:
            raise PerdureError(f"dare: seed must be >= 0, got {self.seed}")

    def arrive(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        return {"sum": added(state, "sum", arrival.factor * self._thinned(tau, arrival))}

    def _without(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        return {"sum": state["sum"] - arrival.factor * self._thinned(tau, arrival)}

    def _thinned(self, tau: Tensor, arrival: Arrival) -> Tensor:
        if arrival.role == "vector" or self.density == 1.0:
            return tau
        seed = derive(self.seed, "dare", arrival.identity, arrival.tensor)
        keep = uniform(seed, arrival.offset, tau.numel()).view(tau.shape) < self.density
        return torch.where(keep, tau / self.density, 0.0)

    def merged(self, state: State, history: Sequence[Arrived]) -> Tensor:
        return self.scale * state["sum"]
