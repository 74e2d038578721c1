"""RegMean: linear layers merged so that their outputs stay what they were."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from perdure.errors import PerdureError
from perdure.merging.rule import (
    Arrival,
    Arrived,
    Place,
    Rule,
    State,
    added,
    check_range,
    positive_weights,
)
from perdure.merging.statistics import inputs_of


@dataclass(frozen=True, kw_only=True)
class Regmean(Rule):
    """Merges each linear layer so that its outputs are nearest to those of every checkpoint.

        W = (sum_i w_i W_i G'_i) (sum_i w_i G'_i)^-1,    G_i = E[x x^T]
        G'_i = alpha G_i + (1 - alpha) diag(G_i) + ridge tr(G_i) / d I

    with x the inputs of the layer, of dimension d, in checkpoint i on rows of its own task (Jin et
    al. 2022, 2212.09849). With alpha = 1 and ridge = 0, this is the least-squares solution of all
    rows at once, sum_i w_i E |W x - W_i x|^2. A smaller alpha trusts the correlations between
    inputs less. `perdure statistics CHECKPOINT ROWS FOLDER --rule regmean` measures G, in fp32.
    With alpha near 1 and few rows, G' is nearly singular: the solution follows the rounding of G
    by a few per cent, and has large weights in directions that no row reaches.

    All other tensors are averaged: embeddings and the output layer, norms and biases, packed
    experts, and layers that no row reaches.

    State: the sums of W_i G'_i, in task vectors, and of G'_i, of d x d numbers for each layer; both
    in fp64, because the inverse magnifies rounding, so that `exact` changes nothing.

    Args:
        alpha: the share of the off-diagonal elements of G that is kept, in [0, 1].
        ridge: what is added to the diagonal, as a share of its mean, >= 0. In directions without
            inputs it makes W an average, with tr(G_i) as weights.
    """

    paper: ClassVar[str | None] = "https://huggingface.co/papers/2212.09849"
    state: ClassVar[tuple[str, ...]] = ("sum", "gram")
    scalars: ClassVar[tuple[str, ...]] = ("transposed",)
    work: ClassVar[int] = 6
    idempotent: ClassVar[bool] = True
    can_undo: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    needs: ClassVar[str | None] = "gram"

    alpha: float = 0.9
    ridge: float = 1e-6

    def __post_init__(self) -> None:
        check_range(self, "alpha", most=1.0)
        check_range(self, "ridge")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64

    def shape_of(self, kind: str, place: Place) -> tuple[int, ...]:
        inputs = inputs_of(place)
        return (inputs, inputs) if kind == "gram" else super().shape_of(kind, place)

    def beside(self, place: Place) -> int:
        return 8 * inputs_of(place) ** 2  # the Gram matrix, its sum, and what solving takes

    def arrive(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        parts = self._parts(tau, arrival)
        folded = {key: added(state, key, part) for key, part in parts.items()}
        return {**folded, "transposed": tau.new_tensor(float(arrival.transposed))}

    def _without(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        parts = self._parts(tau, arrival)
        return {**state, **{key: state[key] - part for key, part in parts.items()}}

    def _parts(self, tau: Tensor, arrival: Arrival) -> State:
        """Return the task vector times G', and G', both times the checkpoint's weight."""
        place = Place(arrival.tensor, arrival.shape, arrival.role, transposed=arrival.transposed)
        inputs = inputs_of(place)
        if not inputs:
            return {"sum": arrival.factor * tau, "gram": tau.new_zeros(0, 0)}
        gram = arrival.factor * self._regularised(arrival.statistic, inputs)
        return {"sum": gram @ tau if arrival.transposed else tau @ gram, "gram": gram}

    def _regularised(self, gram: Tensor | None, inputs: int) -> Tensor:
        """Return G', the identity if there is no G or no input ever had a value."""
        identity = torch.eye(inputs, dtype=self.dtype)
        if gram is None or not gram.any():
            return identity
        diagonal = gram.diagonal()
        reduced = self.alpha * gram + (1.0 - self.alpha) * diagonal.diag()
        return reduced + self.ridge * diagonal.mean() * identity

    def merged(self, state: State, history: Sequence[Arrived]) -> Tensor:
        gram, total = state["gram"], state["sum"]
        if not gram.numel():
            return total / sum(1.0 if one.weight is None else one.weight for one in history)
        try:
            if state["transposed"]:
                return torch.linalg.solve(gram, total)
            return torch.linalg.solve(gram, total.T).T
        except RuntimeError as error:  # torch.linalg.LinAlgError, which is one
            raise PerdureError(
                "regmean: the Gram matrices of a layer have no inverse, because some of its inputs "
                "were zero on all rows; give a ridge > 0"
            ) from error

    def check_weights(self, weights: Sequence[float | None]) -> None:
        positive_weights(self, weights)
