"""Random numbers that depend only on a seed and a position.

Generators draw one number after another, so what an element gets would depend on how a tensor is
cut into pieces, and on the number of threads. Here each element's number is a hash of the seed and
its index, by the finaliser of SplitMix64 (Steele, Lea & Flood 2014), so it is the same always.
"""

import torch
from torch import Tensor


def uniform(seed: int, offset: int, count: int) -> Tensor:
    """Return uniform random numbers in [0, 1) of the elements `offset` to `offset + count`.

    Args:
        seed: a 63-bit seed.
        offset: the index of the first element.
        count: the number of elements.
    """
    index = torch.arange(offset + 1, offset + count + 1, dtype=torch.int64)
    bits = index * _signed(0x9E3779B97F4A7C15) + seed  # int64 wraps around
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    bits = bits ^ _shifted(bits, 31)
    return _shifted(bits, 40).to(torch.float32) * 2.0**-24  # the 24 highest bits


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Return 64-bit numbers shifted to the right, with zeros from the left."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """Return the signed number with the bits of an unsigned one."""
    return number - (1 << 64) if number >> 63 else number
