"""Subspaces of a matrix's input or output, as orthonormal columns [dimensions, directions]."""

from typing import NamedTuple

import torch
from torch import Tensor


def within(vectors: Tensor, basis: Tensor) -> Tensor:
    """The part of each column of `vectors` that lies in the span of `basis`: Q Q^T v."""
    return basis @ (basis.mT @ vectors)


def without(vectors: Tensor, basis: Tensor) -> Tensor:
    """The part of each column of `vectors` that is orthogonal to `basis`: v - Q Q^T v."""
    return vectors - within(vectors, basis)


def complement(basis: Tensor) -> Tensor:
    """Orthonormal columns [d, d - k] of the complement of `basis` [d, k]."""
    return torch.linalg.qr(basis, mode="complete").Q[:, basis.shape[1] :]


def leading(moment: Tensor, space: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the columns of `space` so that the first ones hold most of `moment` [d, d].

    Returns:
        The rotated columns, which are the left singular vectors of Q Q^T C with Q the space and C
        the moment, and the energy that each of them holds: the squared singular values, in fp64,
        which add up to ||Q^T C||^2.
    """
    part = _wide(space).mT @ _wide(moment)
    energies, rotation = torch.linalg.eigh(part @ part.mT)
    return (_wide(space) @ rotation.flip(1)).to(space), energies.flip(0).clamp(min=0)


class Span(NamedTuple):
    """A subspace, given by a basis or, if `outside`, by a basis of its complement."""

    basis: Tensor
    outside: bool = False

    def free(self) -> Tensor:
        """Orthonormal columns of the complement of the subspace."""
        return self.basis if self.outside else complement(self.basis)


def grown(span: Span, moment: Tensor, threshold: float) -> Span:
    """Extend the span by the fewest directions with which it holds `threshold` of ||moment||^2.

    This is DualGPM's update: if the span then has more than half of the dimensions, the basis of
    its complement is stored instead.
    """
    directions, energies = leading(moment, span.free())
    total = _wide(moment).square().sum()
    held = total - energies.sum() + torch.cat([energies.new_zeros(1), energies.cumsum(0)])
    new = min(int((held < threshold * total).sum()), len(energies))
    if 2 * (len(moment) - len(energies) + new) > len(moment):
        return Span(directions[:, new:].contiguous(), outside=True)
    return Span(torch.cat([span.basis, directions[:, :new]], dim=1))


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in fp64, because a few large inputs have most of the energy.

    Accelerators other than CUDA may lack fp64, so their tensors are moved to the CPU.
    """
    return (tensor if tensor.is_cuda else tensor.cpu()).double()
