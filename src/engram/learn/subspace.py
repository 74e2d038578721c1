"""Subspaces of a matrix's input or output, as orthonormal columns [dimensions, directions]."""

from torch import Tensor


def within(vectors: Tensor, basis: Tensor) -> Tensor:
    """The part of each column of `vectors` that lies in the span of `basis`: Q Q^T v."""
    return basis @ (basis.mT @ vectors)


def without(vectors: Tensor, basis: Tensor) -> Tensor:
    """The part of each column of `vectors` that is orthogonal to `basis`: v - Q Q^T v."""
    return vectors - within(vectors, basis)
