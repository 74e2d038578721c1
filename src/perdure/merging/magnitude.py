"""Numbers about a whole tensor that is read in pieces, with the same result however it is cut."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from perdure.merging.rule import Pieces


ROW = 4096  # elements that one thread adds up
PART = ROW << 7  # elements that are in fp64 at a time
LOW = 15  # the low bits of a magnitude; the 16 bits above them are counted first


def kth_largest(pieces: Pieces, k: int) -> float:
    """Return the k-th largest magnitude of a tensor, exactly, in fp32.

    The bits of a non-negative fp32 number, read as an integer, have its order. So the higher bits
    of all magnitudes are counted first, and then the lower bits of those that share the higher ones
    of the k-th. This reads the tensor twice and keeps 65,536 counts.

    Args:
        pieces: returns the pieces of the tensor, each time from the first.
        k: which magnitude, from 1 for the largest.
    """
    high, rank = _bin(_counts((bits >> LOW for bits in _bits(pieces())), 1 << 16), k)
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
    """Return the inner product of two tensors in fp64.

    It is summed in rows, each by one thread, so that the number of threads does not change its last
    bits.
    """
    parts = zip(one.flatten().split(PART), other.flatten().split(PART), strict=True)
    sums = torch.cat([_row_sums(a.double() * b.double()) for a, b in parts])
    while sums.numel() > 1:
        sums = _row_sums(sums)
    return sums.sum().item()


def _row_sums(values: Tensor) -> Tensor:
    """Return the sums of a vector's rows of ROW elements, the last one filled with zeros."""
    return torch.nn.functional.pad(values, (0, -values.numel() % ROW)).view(-1, ROW).sum(dim=1)


def norm(tau: Tensor) -> float:
    """Return the Frobenius norm of a tensor, computed as `dot`."""
    return math.sqrt(dot(tau, tau))
