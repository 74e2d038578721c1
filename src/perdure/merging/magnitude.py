"""Numbers about a whole tensor that is read in pieces, with the same result however it is cut."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from perdure.merging.rule import Pieces


ROW = 4096  # elements that one thread adds up
PART = ROW << 7  # elements that are multiplied at a time
LOW = 15  # the low bits of a magnitude; the 16 bits above them are counted first


def kth_largest(pieces: Pieces, k: int) -> float:
    """Return the k-th largest magnitude of a tensor, exactly, in fp32; 0 of one without elements.

    The bits of a non-negative fp32 number, read as an integer, have its order. So the higher bits
    of all magnitudes are counted first, and then the lower bits of those that share the higher ones
    of the k-th. This reads the tensor twice and keeps 65,536 counts.

    Args:
        pieces: returns the pieces of the tensor, each time from the first.
        k: which magnitude, from 1 for the largest.
    """
    counts = _counts((bits >> LOW for bits in _bits(pieces())), 1 << 16)
    if not counts.any():
        return 0.0
    high, rank = _bin(counts, k)
    mask = (1 << LOW) - 1
    lower = (bits[bits >> LOW == high] & mask for bits in _bits(pieces()))
    low, _ = _bin(_counts(lower, 1 << LOW), rank)
    return torch.tensor(high << LOW | low, dtype=torch.int32).view(torch.float32).item()


def magnitudes(tau: Tensor) -> Tensor:
    """Return the magnitudes that `kth_largest` ranks."""
    return tau.abs().to(torch.float32)


def _bits(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    for piece in pieces:
        yield magnitudes(piece).contiguous().view(torch.int32).flatten()


def _counts(bins: Iterable[Tensor], count: int) -> Tensor:
    return sum(
        (torch.bincount(part, minlength=count) for part in bins),
        start=torch.zeros(count, dtype=torch.int64),
    )


def _bin(counts: Tensor, k: int) -> tuple[int, int]:
    """Return the bin of the k-th largest number, and its rank among those of the bin."""
    at_least = counts.flip(0).cumsum(0).flip(0)  # how many are in each bin or above it
    number = int((at_least >= k).nonzero()[-1])
    return number, k - int(at_least[number] - counts[number])


def kept(density: float, count: int) -> int:
    """Return how many of `count` elements a density keeps: at least one."""
    return max(1, round(density * count))


def dot(one: Tensor, other: Tensor) -> float:
    """Return the inner product of two tensors: rows in their data type, and their sum in fp64.

    Each row is summed by one thread, so that the number of threads does not change the last bits.
    What overflows in fp32 is computed in fp64.
    """
    pairs = [*zip(_rows(one), _rows(other), strict=True)]
    total = _sum([torch.linalg.vecdot(a, b) for a, b in pairs])
    if not math.isfinite(total):
        total = _sum([torch.linalg.vecdot(a.double(), b.double()) for a, b in pairs])
    return total


def _sum(parts: list[Tensor]) -> float:
    """Return the sum of some vectors in fp64."""
    sums = torch.cat(parts).double()
    while sums.numel() > ROW:
        sums = torch.cat([rows.sum(dim=1) for rows in _rows(sums)])
    return sums.sum().item()


def _rows(values: Tensor) -> list[Tensor]:
    """Return the elements of a tensor as rows of ROW, PART at a time, then as one of the rest."""
    flat, whole = values.flatten(), values.numel() // ROW * ROW
    rest = [] if 0 < whole == len(flat) else [flat[whole:].view(1, -1)]
    return [*(part.view(-1, ROW) for part in flat[:whole].split(PART)), *rest]


def is_finite(values: Tensor) -> bool:
    """Return whether no value is infinite or not a number.

    The least and the greatest value tell it, in a twentieth of the time of `torch.isfinite`.
    """
    return not values.numel() or bool(torch.stack(values.aminmax()).isfinite().all())


def norm(tau: Tensor) -> float:
    """Return the Frobenius norm of a tensor, computed as `dot`."""
    return math.sqrt(dot(tau, tau))
