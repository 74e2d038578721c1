"""Which weights are important to a task: pure functions on flat fp32 buffers.

All trainable weights are stored one after the other in one flat buffer of n values. So a score, a
mask or a fusion needs a few kernels whatever the number of tensors, and one threshold applies to
all of them. The mathematics is that of Recurrent-KIF, https://huggingface.co/papers/2502.17510. The
functions do not depend on models, optimizers or rounds.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from perdure.models.sharded import Shards, local


ScoreKind = Literal["sensitivity", "sensitivity_uncertainty"]

ALONE = Shards(())  # the weights are not sharded
# How many values go into a histogram at once; it limits temporary tensors to about 70 MB for any n.
CHUNK = 2**22
HALF = 16  # the bits of a 32-bit float that one histogram counts
LOWER_HALF, WITHOUT_SIGN = 0xFFFF, 0x7FFF


# --- between parameters and the flat buffer


@torch.no_grad()
def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """A new fp32 buffer with the values of all tensors, in order; of sharded ones, its own part."""
    return torch.cat([local(tensor).reshape(-1) for tensor in tensors]).float()


@torch.no_grad()
def flatten_gradients(parameters: Sequence[Tensor]) -> Tensor:
    """A new fp32 buffer with the gradients of all parameters, in order; None becomes zeros."""
    return flatten(
        [
            local(parameter).new_zeros(1).expand(local(parameter).numel())
            if parameter.grad is None
            else parameter.grad
            for parameter in parameters
        ]
    )


@torch.no_grad()
def write_back(flat: Tensor, parameters: Sequence[Tensor]) -> None:
    """Copy the buffer into the parameters in place; they keep their dtype and their storage."""
    own = [local(parameter) for parameter in parameters]
    pieces = flat.split([part.numel() for part in own])
    shaped = [piece.view(part.shape) for piece, part in zip(pieces, own, strict=True)]
    torch._foreach_copy_(own, shaped)  # pyright: ignore[reportPrivateImportUsage]


# --- importance


class Importance(NamedTuple):
    """Smoothed values for each weight of a buffer; `uncertainty` is None if the score has none."""

    sensitivity: Tensor
    uncertainty: Tensor | None

    @classmethod
    def zeros(cls, weights: Tensor, kind: ScoreKind) -> "Importance":
        uncertain = kind == "sensitivity_uncertainty"
        return cls(torch.zeros_like(weights), torch.zeros_like(weights) if uncertain else None)


@torch.no_grad()
def update(
    state: Importance,
    weights: Tensor,
    gradients: Tensor,
    beta_sensitivity: float,
    beta_uncertainty: float,
    shards: Shards = ALONE,
) -> bool:
    """Smooth the sensitivity of one more gradient into the maps, in place.

    The sensitivity of a weight is the first-order estimate of how much the loss changes if the
    weight is set to zero, so `weights` must be those at which the gradient was taken:

        I <- |w g|;  S <- b1 S + (1 - b1) I;  U <- b2 U + (1 - b2) |I - S|    (U sees the new S)

    Both maps start at zero without bias correction, because a common factor does not change a
    quantile mask.

    `gradients` is overwritten. If any sensitivity is not finite, nothing is updated and False is
    returned; the check synchronizes once with the device.
    """
    sensitivity = torch.mul(weights, gradients, out=gradients).abs_()
    largest = sensitivity.amax() if sensitivity.numel() else sensitivity.new_zeros(())
    infinite = (~largest.isfinite()).float()  # amax returns NaN if there is one
    if shards.most(infinite):
        return False
    state.sensitivity.lerp_(sensitivity, 1 - beta_sensitivity)
    if state.uncertainty is not None:
        deviation = sensitivity.sub_(state.sensitivity).abs_()
        state.uncertainty.lerp_(deviation, 1 - beta_uncertainty)
    return True


def score(state: Importance) -> Tensor:
    """S (the map itself, not a copy), or S U if there is an uncertainty."""
    if state.uncertainty is None:
        return state.sensitivity
    return state.sensitivity * state.uncertainty


# --- the mask


@torch.no_grad()
def quantile_threshold(scores: Tensor, q: float, shards: Shards = ALONE) -> Tensor:
    """The value at index floor(q (n - 1)) of the ascending scores, exactly, without sorting.

    This is the lower of the two neighbours between which `torch.quantile` interpolates. No score
    lies between the two, so `scores > threshold` is the same set for both, unless the interpolation
    rounds up to the upper neighbour (or that one is infinite). The index is computed exactly, from
    the decimal digits of q. `torch.quantile` rounds it to fp32, so that it can be off by one as n
    approaches its limit of 2^24. Here n has no limit.

    The bits of non-negative floats, read as integers, have the same order as the floats. So a
    histogram of the upper 16 bits finds the bin of the value, and a histogram of the lower 16 bits
    of that bin's members finds the value. Ties, denormals and infinities need no special treatment.
    `kthvalue` and numpy's `partition` are exact too, but slower (benchmarks/quantile.py), and both
    copy all n values.

    Args:
        scores: flat fp32 values >= 0; NaN and negative values raise ValueError.
        q: rank of the threshold among the scores, from 0 (the least) to 1 (the greatest).
        shards: if the scores are spread over several processes, adds up their histograms, so that
            all processes find the same threshold, that of all scores.

    Returns:
        The threshold, a 0-dimensional tensor on the scores' device.
    """
    count = int(shards.sum(torch.tensor(scores.numel(), device=scores.device)))
    if count == 0 or not 0 <= q <= 1:
        raise ValueError(f"need scores and 0 <= q <= 1, got {count} scores and q = {q}")
    if scores.numel() and not scores.amin() >= 0:  # amin returns NaN if there is one
        raise ValueError("scores must be >= 0 and not NaN")
    index = int(Fraction(str(q)) * (count - 1))
    chunks = scores.view(torch.int32).split(CHUNK)
    upper, index = _bin_of(index, map(_upper_half, chunks), 2 ** (HALF - 1), shards)
    members = (bits[_upper_half(bits) == upper] for bits in chunks)
    lower, _ = _bin_of(index, (bits & LOWER_HALF for bits in members), 2**HALF, shards)
    bits = torch.tensor((upper << HALF) + lower, dtype=torch.int32, device=scores.device)
    return bits.view(torch.float32)


def _upper_half(bits: Tensor) -> Tensor:
    """The upper 16 bits without the sign, so that -0.0 counts as 0.0."""
    return (bits >> HALF).bitwise_and_(WITHOUT_SIGN)


def _bin_of(index: int, chunks: Iterable[Tensor], num_bins: int, shards: Shards) -> tuple[int, int]:
    """The bin that holds the value of this rank, and the rank within that bin."""
    counts = reduce(torch.add, (torch.bincount(chunk, minlength=num_bins) for chunk in chunks))
    below = shards.sum(counts).cumsum(0)
    number = int(torch.searchsorted(below, index, right=True))
    return number, index - (int(below[number - 1]) if number else 0)


def important(scores: Tensor, q: float, shards: Shards = ALONE) -> Tensor:
    """The mask of the scores above their q-quantile: about 1 - q of them, fewer with ties."""
    return scores > quantile_threshold(scores, q, shards)


def unit_range(scores: Tensor, shards: Shards = ALONE) -> Tensor:
    """(scores - min) / (max - min), zeros if they are all equal."""
    low, high = scores.aminmax()
    low, high = -shards.most(-low), shards.most(high)
    return (scores - low) / (high - low).clamp_min(torch.finfo(scores.dtype).tiny)
