"""Intruder dimensions: new directions of the weights that the base does not have."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from perdure.errors import PerdureError
from perdure.merging.rule import Place
from perdure.merging.treatment import Treatment


@dataclass(frozen=True, kw_only=True)
class Intruder(Treatment):
    """Scales down the large directions of the merged weights that the base does not have.

        W_0 + tau = sum_j s_j u_j v_j^T,    W_0 = sum_i s0_i x_i y_i^T
        tau' = tau - (1 - remaining) sum_{j in J} s_j u_j v_j^T
        J = the j <= top_k with max_i |<u_j, x_i>| < threshold

    in each matrix (Shuttleworth et al. 2024, 2410.21228; PEFT's `reduce_intruder_dimension`, which
    also cuts the result back to the adapter's rank). LoRA adds such directions, full fine-tuning
    hardly does, and they are where forgetting sits. The u_j are on the side of the outputs, also
    where a model stores its layers transposed, as GPT-2 does. Of packed experts, each matrix is
    treated on its own; vectors and embeddings are left as they are.

    Two singular value decompositions are made of each matrix. Of LoRA adapters, the result is a
    whole model.

    Args:
        top_k: how many of the largest directions are looked at, >= 1.
        threshold: the cosine below which a direction is an intruder, in [0, 1].
        remaining: lambda, the share of an intruder that remains, in [0, 1].
    """

    paper: ClassVar[str | None] = "https://huggingface.co/papers/2410.21228"
    neutral: ClassVar[dict[str, Any]] = {"remaining": 1.0}
    whole: ClassVar[bool] = True
    work: ClassVar[int] = 14

    top_k: int = 10
    threshold: float = 0.5
    remaining: float = 0.75

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise PerdureError(f"intruder: top_k must be >= 1, got {self.top_k}")
        for key in ("threshold", "remaining"):
            value = getattr(self, key)
            if not 0 <= value <= 1:
                raise PerdureError(f"intruder: {key} must be >= 0 and <= 1, got {value:g}")

    def treat(self, tau: Tensor, base: Tensor, place: Place) -> Tensor:
        if place.role != "matrix" or self.remaining == 1.0:
            return tau
        if tau.dim() > 2:
            pairs = zip(tau.flatten(0, -3), base.flatten(0, -3), strict=True)
            return torch.stack([self._matrix(one, other) for one, other in pairs]).view(tau.shape)
        if place.transposed:
            return self._matrix(tau.T, base.T).T
        return self._matrix(tau, base)

    def _matrix(self, tau: Tensor, base: Tensor) -> Tensor:
        """Return the treated task vector of a matrix [d_out, d_in]."""
        if not tau.any():
            return tau
        u, s, vh = torch.linalg.svd(base + tau, full_matrices=False)
        intruders = intruders_of(u[:, : self.top_k], base, self.threshold)
        part = (u[:, intruders] * s[intruders]) @ vh[intruders]
        return tau - (1.0 - self.remaining) * part


def intruders_of(directions: Tensor, base: Tensor, threshold: float) -> Tensor:
    """Return the numbers of the directions that the base does not have.

    Args:
        directions: unit vectors, of shape [d_out, k].
        base: the base's weights, of shape [d_out, d_in].
        threshold: the cosine to the nearest direction of the base below which one is an intruder.
    """
    x, s, _ = torch.linalg.svd(base, full_matrices=False)
    known = s > s[:1] * max(base.shape) * torch.finfo(s.dtype).eps
    cosines = (directions.T @ x[:, known]).abs()  # [k, the base's directions]
    if not known.any():
        return torch.arange(directions.shape[1])
    return (cosines.amax(dim=1) < threshold).nonzero().flatten()
