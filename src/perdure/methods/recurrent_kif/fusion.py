"""The fusion of two updates, weight by weight, and its effect on Adam's moments.

Pure functions on flat fp32 buffers, or on pieces of them (`methods/shared/importance.py`).
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from perdure.methods.shared.importance import bits_of, scaled
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

    The masks are of bool, or of int32 as `importance.above` makes them.
    """
    updated = {
        (w_inner, w_outer): _updated(start, inner, outer, w_inner, w_outer)
        for w_inner, w_outer in set(table)
    }
    both, only_inner, only_outer, neither = (updated[pair].view(torch.int32) for pair in table)
    inner_bits, outer_bits = bits_of(inner_mask), bits_of(outer_mask)
    fused_if_inner = _where(outer_bits, both, only_inner)
    fused = _where(outer_bits, only_outer, neither)
    return _where(inner_bits, fused_if_inner, fused).view(torch.float32)


def where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A new fp32 tensor: `a` where the mask is set, and `b` where it is not."""
    return _where(bits_of(mask), a.view(torch.int32), b.view(torch.int32)).view(torch.float32)


def _where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A new tensor: `a` where all bits of the mask are set, and `b` where none is.

    On a CPU this takes a fifth of the time of `torch.where`, which branches for each value.
    """
    return (a ^ b).bitwise_and_(mask).bitwise_xor_(b)


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
    inner_range: tuple[Tensor, Tensor] | None = None,
    outer_range: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """As `fuse`, but with w computed from how much more important a weight is to one side:

        w_inner = e^(a/T) / (e^(a/T) + e^(b/T)),   w_outer = 1 - w_inner

    where a and b are the inner and outer scores, each shifted and scaled to 0..1 over all weights
    (scores that are all equal become 0). As T -> infinity, every weight keeps half of each update.

    If the arguments are pieces of the buffers, `inner_range` and `outer_range` are the least and
    the greatest score of all weights.
    """
    inner_scores = scaled(inner_scores, *(inner_range or inner_scores.aminmax()))
    outer_scores = scaled(outer_scores, *(outer_range or outer_scores.aminmax()))
    w_inner = (inner_scores - outer_scores).div_(temperature).sigmoid_()
    # start + w (inner - start) + (1 - w) (outer - inner)
    return start + w_inner * (inner - start) + (1 - w_inner) * (outer - inner)


def counts(inner_mask: Tensor, outer_mask: Tensor) -> Tensor:
    """How many weights are important to (inner, outer, both)."""
    inner_bits, outer_bits = bits_of(inner_mask), bits_of(outer_mask)
    masks = (inner_bits, outer_bits, inner_bits & outer_bits)
    # A sum of another type than the values is several times slower.
    return torch.stack([mask.sum(dtype=torch.int32) for mask in masks]).neg_()


def case_shares(num_inner: Tensor, num_outer: Tensor, num_both: Tensor, n: int) -> Tensor:
    """The shares of weights important to (both, inner only, outer only, neither); they add to 1."""
    neither = n - num_inner - num_outer + num_both
    return torch.stack([num_both, num_inner - num_both, num_outer - num_both, neither]) / n


class KeptShare:
    """The share of the inner update that a fusion kept, added up over the pieces of the buffers.

    clip(<fused - start, reached - start> / |reached - start|^2, 0, 1)
    """

    def __init__(self, device: torch.device):
        self.dot, self.square = torch.zeros(2, device=device).unbind()

    @torch.no_grad()
    def add(self, start: Tensor, reached: Tensor, fused: Tensor) -> None:
        inner = reached - start
        self.dot += torch.dot(fused - start, inner)
        self.square += torch.dot(inner, inner)

    def add_up(self, shards: Shards) -> None:
        """Add the sums of all processes, if the weights are spread over several."""
        self.dot, self.square = shards.sum(torch.stack([self.dot, self.square])).unbind()

    def value(self) -> Tensor:
        return (self.dot / self.square.clamp(min=1e-30)).clamp(0, 1)


@torch.no_grad()
def after_fusion(policy: Momentum, optimizer: Any, kept: KeptShare) -> None:
    """Apply the policy to Adam's first moments m after a fusion.

    keep   m is unchanged; it still contains the whole inner update.
    reset  m = 0; the second moment is unchanged.
    scale  m is multiplied by the share of the inner update that the fusion kept (`KeptShare`).
    """
    moments = [local(state["exp_avg"]) for state in optimizer.state.values() if "exp_avg" in state]
    if policy == "keep" or not moments:
        return
    share = kept.value() if policy == "scale" else torch.zeros_like(kept.dot)
    torch._foreach_mul_(moments, share)  # pyright: ignore[reportPrivateImportUsage]
