"""OPCM: each task vector is projected away from what was merged before."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor

from perdure.merging.rule import Arrival, Arrived, Rule, State, check_range


ROWS = 128  # rows of a Gram matrix that are computed at a time


@dataclass(frozen=True, kw_only=True)
class Opcm(Rule):
    """Projects each task vector away from what was merged before, and keeps the norm constant.

        A_1 = tau_1,    A_t = A_{t-1} + clean(tau_t; A_{t-1})
        theta = theta_0 + A_t mean_i |tau_i| / |A_t|

    Orthogonal Projection-based Continual Merging (Tang et al. 2025, 2501.09522). With
    A = U diag(s) V^T, the matrix U^T tau V is set to zero in its first r x r corner and on its
    diagonal, so that clean(tau) is orthogonal to A; r is the number of the first singular values
    that together have at most the share `alpha` of their sum. Only matrices are projected; vectors
    and embeddings are added. The norms are those of the whole model.

    What is projected out is U_r (U_r^T tau V_r) V_r^T and u_i (u_i^T tau v_i) v_i^T for i > r, of
    the thin SVD, whose V is A^T U diag(1 / s) and is never formed. Singular values of zero have no
    directions, so nothing is projected along them.

    There is no published result on language models: its authors merge the image encoders of CLIP.

    State: A, and the norms of the arrivals.

    Args:
        alpha: the share of the singular values' sum whose corner is projected out, in [0, 1]; with
            1, all of A's directions.
    """

    paper: ClassVar[str | None] = "https://huggingface.co/papers/2501.09522"
    work: ClassVar[int] = 14
    order_matters: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    rescales: ClassVar[bool] = True
    weighted: ClassVar[bool] = False

    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_range(self, "alpha", most=1.0)

    def arrive(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        if not state:
            return {"sum": tau}
        if arrival.role == "matrix":
            tau = clean(tau, state["sum"], self.alpha)
        return {"sum": state["sum"] + tau}

    def merged(self, state: State, history: Sequence[Arrived]) -> Tensor:
        return state["sum"]

    def scale_of(self, history: Sequence[Arrived], norm: float) -> float:
        return fmean(arrived.norm for arrived in history) / norm if norm > 0 else 1.0


def clean(tau: Tensor, merged: Tensor, alpha: float) -> Tensor:
    """Return the part of a task vector that is orthogonal to what was merged before.

    Args:
        tau: a matrix, or packed matrices of experts, of which each is projected on its own.
        merged: what was merged before, of the same shape.
        alpha: the share of the singular values' sum whose corner is projected out.
    """
    if tau.dim() > 2:
        pairs = zip(tau, merged, strict=True)
        return torch.stack([clean(one, other, alpha) for one, other in pairs])
    if tau.shape[0] > tau.shape[1]:
        return clean(tau.T, merged.T, alpha).T
    u, s = directions(merged)
    if not len(s):
        return tau
    beyond = s.cumsum(0) / s.sum() > alpha
    r = int(beyond.to(torch.int8).argmax()) if beyond.any() and alpha < 1 else len(s)
    # With V^T = diag(1 / s) U^T A, U^T tau V is (U^T tau A^T) U diag(1 / s): V is never made.
    crossed = u.T @ (tau @ merged.T)  # [directions, d_out]
    corner = (crossed[:r] @ u[:, :r]) / s[:r]
    diagonal = (crossed[r:].T * u[:, r:]).sum(dim=0) / s[r:]  # u_i^T tau v_i
    known = torch.cat([u[:, :r] @ corner, u[:, r:] * diagonal], dim=1)  # times V^T
    return torch.addmm(tau, (known / s) @ u.T, merged, alpha=-1)


def directions(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return u and s of the SVD of a wide matrix A, without its singular values of zero.

    Singular values below s_1 d_in eps are rounding errors. In fp32, the others come from the
    eigenvectors of the Gram matrix in fp64,

        A A^T = U diag(s^2) U^T

    for 1024 x 4096 in a quarter of the time of a thin SVD. The large directions have smaller errors
    than in an SVD in fp32, the smallest ones similar errors.
    """
    if matrix.dtype == torch.float32 and min(matrix.shape) > 0:
        exact = matrix.double()
        gram = exact.new_empty(len(exact), len(exact))
        for start in range(0, len(exact), ROWS):  # the lower triangle, which is all that eigh reads
            rows = slice(start, start + ROWS)
            gram[start:, rows] = exact[start:] @ exact[rows].T
        squares, left = torch.linalg.eigh(gram)
        u, s = left.flip(1).float(), squares.flip(0).clamp_min(0).sqrt()
    else:
        u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    known = s > s[:1] * max(matrix.shape) * torch.finfo(matrix.dtype).eps
    return u[:, known], s[known].to(matrix.dtype)
