"""Random numbers that depend only on a seed and a position.

Generators draw one number after another, so what an element gets would depend on how a tensor is
cut into pieces, and on the number of threads. Here each element's number is a hash of the seed and
its index, by the finaliser of SplitMix64 (Steele, Lea & Flood 2014), so it is the same always.
"""

import torch
from torch import Tensor


PART = 1 << 16  # elements that are computed at a time, which stay in the processor's cache


def uniform(seed: int, offset: int, count: int) -> Tensor:
    """Return uniform random numbers in [0, 1) of the elements `offset` to `offset + count`.

    Args:
        seed: a 63-bit seed.
        offset: the index of the first element.
        count: the number of elements.
    """
    numbers = torch.empty(count, dtype=torch.float32)
    for start in range(0, count, PART):
        part = numbers[start : start + PART]
        begin = offset + start + 1
        bits = torch.arange(begin, begin + len(part), dtype=torch.int64)
        bits.mul_(_signed(0x9E3779B97F4A7C15)).add_(seed)  # int64 wraps around
        bits.bitwise_xor_(_shifted(bits, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
        bits.bitwise_xor_(_shifted(bits, 27)).mul_(_signed(0x94D049BB133111EB))
        bits.bitwise_xor_(_shifted(bits, 31))
        part.copy_(_shifted(bits, 40)).mul_(2.0**-24)  # the 24 highest bits
    return numbers


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Return 64-bit numbers shifted to the right, with zeros from the left."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """Return the signed number with the bits of an unsigned one."""
    return number - (1 << 64) if number >> 63 else number
