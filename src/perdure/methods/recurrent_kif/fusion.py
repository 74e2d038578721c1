"""The fusion of two updates, weight by weight, and its effect on Adam's moments.

Pure functions on flat fp32 buffers (`methods/shared/importance.py`).
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from perdure.methods.shared.importance import ALONE, unit_range
from perdure.models.sharded import Shards, local


Momentum = Literal["keep", "reset", "scale"]


class FusionTable(NamedTuple):
    """The shares of the inner and the outer update that a weight keeps, in each of four cases.

    A weight is important to both sides, only to the inner or the outer one, or to neither.
    """

    both: tuple[float, float]
    inner: tuple[float, float]
    outer: tuple[float, float]
    neither: tuple[float, float]


class Soft(NamedTuple):
    """Replaces the table: the shares are computed from both scores, see `fuse_softly`."""

    temperature: float


@torch.no_grad()
def fuse(
    start: Tensor,
    inner: Tensor,
    outer: Tensor,
    inner_mask: Tensor,
    outer_mask: Tensor,
    table: FusionTable,
) -> Tensor:
    """Start + w_inner (inner - start) + w_outer (outer - inner), by the case of each weight.

    `start` are the weights at the start of a round, `inner` those after the steps on the new task,
    and `outer` those after the steps on memory. The result is always a new tensor. (1, 1) gives
    exactly `outer`, (1, 0) exactly `inner` and (0, 0) exactly `start`.
    """
    updated = {
        (w_inner, w_outer): _updated(start, inner, outer, w_inner, w_outer)
        for w_inner, w_outer in set(table)
    }
    both, only_inner, only_outer, neither = (updated[pair] for pair in table)
    fused = torch.where(outer_mask, only_outer, neither)
    fused_if_inner = torch.where(outer_mask, both, only_inner)
    return torch.where(inner_mask, fused_if_inner, fused, out=fused)


def _updated(start: Tensor, inner: Tensor, outer: Tensor, w_inner: float, w_outer: float) -> Tensor:
    """One case of the table, applied to every weight with as few kernels as possible."""
    if w_inner == w_outer:
        return _between(start, outer, w_inner)  # the two updates add up to outer - start
    if w_outer == 0:
        return _between(start, inner, w_inner)
    if w_inner == 1:
        return _between(inner, outer, w_outer)
    step = outer - inner
    return torch.add(_between(start, inner, w_inner), step, alpha=w_outer, out=step)


def _between(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Compute a + weight (b - a), exactly for 0 and 1, where lerp would turn -0.0 into 0.0."""
    return a if weight == 0 else b if weight == 1 else torch.lerp(a, b, weight)


@torch.no_grad()
def fuse_softly(
    start: Tensor,
    inner: Tensor,
    outer: Tensor,
    inner_scores: Tensor,
    outer_scores: Tensor,
    temperature: float,
    shards: Shards = ALONE,
) -> Tensor:
    """As `fuse`, but with w computed from how much more important a weight is to one side:

        w_inner = e^(a/T) / (e^(a/T) + e^(b/T)),   w_outer = 1 - w_inner

    where a and b are the inner and outer scores, each shifted and scaled to 0..1 over all weights
    (scores that are all equal become 0). As T -> infinity, every weight keeps half of each update.
    """
    difference = unit_range(inner_scores, shards) - unit_range(outer_scores, shards)
    w_inner = difference.div_(temperature).sigmoid_()
    # start + w (inner - start) + (1 - w) (outer - inner)
    return start + w_inner * (inner - start) + (1 - w_inner) * (outer - inner)


def case_shares(inner_mask: Tensor, outer_mask: Tensor, shards: Shards = ALONE) -> Tensor:
    """The shares of weights important to (both, inner only, outer only, neither); they add to 1."""
    both = (inner_mask & outer_mask).count_nonzero()
    inner, outer = inner_mask.count_nonzero(), outer_mask.count_nonzero()
    neither = inner_mask.numel() - inner - outer + both
    cases = shards.sum(torch.stack([both, inner - both, outer - both, neither]))
    return cases / cases.sum()


def counts(masks: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """[parameters, 1 + masks]: the size of each parameter, and its weights in each mask."""
    columns = [[piece.count_nonzero() for piece in mask.split(list(sizes))] for mask in masks]
    weights = torch.tensor(sizes, device=masks[0].device)
    return torch.stack([weights, *map(torch.stack, columns)], dim=1)


@torch.no_grad()
def after_fusion(
    policy: Momentum,
    optimizer: Any,
    start: Tensor,
    reached: Tensor,
    fused: Tensor,
    shards: Shards = ALONE,
) -> None:
    """Apply the policy to Adam's first moments m after a fusion moved `reached` to `fused`.

    keep   m is unchanged; it still contains the whole inner update.
    reset  m = 0; the second moment is unchanged.
    scale  m *= clip(<fused - start, reached - start> / |reached - start|^2, 0, 1), the share of
           the inner update that the fusion kept.
    """
    moments = [local(state["exp_avg"]) for state in optimizer.state.values() if "exp_avg" in state]
    if policy == "keep" or not moments:
        return
    share = torch.zeros((), device=start.device)
    if policy == "scale":
        inner = reached - start
        kept, size = shards.sum(
            torch.stack([torch.dot(fused - start, inner), torch.dot(inner, inner)])
        )
        share = kept / size.clamp(min=1e-30)
    torch._foreach_mul_(moments, share.clamp(0, 1))  # pyright: ignore[reportPrivateImportUsage]
