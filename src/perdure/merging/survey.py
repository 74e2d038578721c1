"""One pass over the base and all checkpoints, before anything is written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from perdure.errors import NotFiniteError
from perdure.merging.fold import PIECE, pieces
from perdure.merging.magnitude import dot
from perdure.merging.model import Checkpoint, Model, opened


FAR = 0.5  # a task vector of a larger share of the base's norm is hardly one of this base


@dataclass(frozen=True)
class Survey:
    """What is known of the task vectors as a whole.

    Args:
        base: the Frobenius norm of the base's weights.
        norms: those of the task vectors.
        cosines: the cosines between all pairs of task vectors; 0 for one without a direction.
    """

    base: float
    norms: list[float]
    cosines: list[list[float]]

    def warnings(self, names: Sequence[str], base: str) -> list[str]:
        """Return a line for each checkpoint that is hardly of the base, or is the base itself."""
        lines = []
        for name, norm in zip(names, self.norms, strict=True):
            share = norm / self.base if self.base else math.inf
            if norm == 0:
                lines.append(f"{name} has exactly the weights of {base}, so it changes nothing")
            elif share > FAR:
                lines.append(
                    f"{name} differs from {base} by {share:.0%} of the norm of its weights; it was "
                    "probably not trained from this base"
                )
        return lines


def survey(base: Model, checkpoints: list[Checkpoint], dtype: torch.dtype) -> Survey:
    """Read all weights once.

    Args:
        base: the base.
        checkpoints: the checkpoints.
        dtype: the data type of the task vectors.

    Raises:
        NotFiniteError: a weight is infinite or not a number; the line names its tensor.
    """
    count = len(checkpoints)
    base_square, squares = 0.0, [0.0] * count
    gram = torch.zeros(count, count, dtype=torch.float64)
    most = max(1 << 14, PIECE // max(1, count // 8))
    with opened(base, checkpoints):
        for place in base.places():
            changed = [c.changes(place.tensor) for c in checkpoints]
            for piece in pieces(place.shape, most):
                weights = base.tensors.read(place.tensor, piece).to(dtype)
                square = dot(weights, weights)
                _check_finite(square, base.name, place.tensor)
                base_square += square
                taus: dict[int, torch.Tensor] = {}
                for number, checkpoint in enumerate(checkpoints):
                    if not changed[number]:
                        continue
                    tau = checkpoint.tau(place.tensor, piece, weights)
                    square = dot(tau, tau)
                    _check_finite(square, checkpoint.name, place.tensor)
                    squares[number] += square
                    for other, earlier in taus.items():
                        gram[number, other] += dot(tau, earlier)
                    taus[number] = tau
    gram += gram.T.clone()
    norms = [math.sqrt(square) for square in squares]
    cosines = [[_cosine(gram, norms, i, j) for j in range(count)] for i in range(count)]
    return Survey(math.sqrt(base_square), norms, cosines)


def _check_finite(square: float, name: str, tensor: str) -> None:
    if not math.isfinite(square):
        raise NotFiniteError(
            f"{name}: its {tensor} has values that are infinite or not numbers; restore its files "
            "from where they came from, or give another one"
        )


def _cosine(gram: torch.Tensor, norms: list[float], one: int, other: int) -> float:
    product = norms[one] * norms[other]
    if one == other or not product:
        return float(one == other)
    return round(max(-1.0, min(1.0, gram[one, other].item() / product)), 4)
