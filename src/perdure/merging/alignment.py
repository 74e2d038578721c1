"""Which row of a checkpoint is which row of the base, where the rows of a tensor are tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from perdure.merging.checkpoint import Tensors
from perdure.merging.fold import Piece
from perdure.seeds import digest


SHOWN = 3  # how many tokens a line names


@dataclass(frozen=True)
class Alignment:
    """The rows of a checkpoint in the order of the base's.

    Args:
        rows: the checkpoint's row of the same token for each row of the base, int32 [rows of the
            base]. It is -1 for a token that the checkpoint lacks, whose row counts as unchanged.
        axes: the tensors whose rows are tokens, with the axis of the vocabulary.
        shared: how many tokens are in both vocabularies.
        lacking: the tokens that only the base has.
        own: the tokens that only the checkpoint has, with their rows.
        fresh: the checkpoint's row of each token that was added to those of the base, int32, -1
            for a token that it lacks; empty if none were added.
    """

    rows: Tensor
    axes: Mapping[str, int]
    shared: int
    lacking: tuple[str, ...] = ()
    own: Mapping[str, int] | None = None
    fresh: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))

    @cached_property
    def key(self) -> str:
        """The hash of the rows."""
        return digest(self.rows.tolist(), self.fresh.tolist(), sorted(self.axes.items()))

    @property
    def memory(self) -> int:
        """The bytes that the numbers of rows take."""
        return self.rows.nbytes + self.fresh.nbytes

    @property
    def differs(self) -> bool:
        """Whether the vocabulary of the checkpoint is another one than the base's."""
        return self.own is not None

    def in_words(self, none_left_out: bool = False) -> str:
        """Return which tokens are whose.

        Args:
            none_left_out: whether the checkpoint's own tokens are in what is written.
        """
        lacking, own = self.lacking, list(self.own or ())
        left = "are added" if none_left_out else "are left out"
        return (
            f"{self.shared} tokens are in both, {len(lacking)} that it lacks{_such(lacking)} stay "
            f"unchanged, and {len(own)} of its own{_such(own)} {left}"
        )

    def described(self) -> dict[str, Any]:
        """Return what a result and the ledger say of it."""
        return {
            "shared": self.shared,
            "unchanged": len(self.lacking),
            "own": len(self.own or ()),
            "sha256": self.key,
        }

    def read(
        self, tensors: Tensors, name: str, own_name: str, piece: Piece, base: Tensor
    ) -> Tensor:
        """Return a piece of the change of a tensor, in the data type of the base's piece.

        Args:
            tensors: the checkpoint's tensors.
            name: the name of the tensor in the base.
            own_name: its name in the checkpoint.
            piece: which piece of the base's tensor; it has whole rows.
            base: the base's weights there.
        """
        width = width_of(tensors.stored[own_name].shape, self.axes[name])
        rows = self.rows[rows_of(piece, width)]
        values = tensors.read_rows(own_name, rows, width).to(base.dtype)
        change = values - base.reshape(values.shape)
        change[rows < 0] = 0
        return change.view(base.shape)


def _such(tokens: Sequence[str]) -> str:
    """Return some tokens as examples."""
    shown = ", ".join(map(repr, tokens[:SHOWN]))
    return f" (such as {shown})" if shown else ""


def width_of(shape: tuple[int, ...], axis: int) -> int:
    """Return the elements of a row along an axis before which there is nothing but ones."""
    return prod(shape[axis + 1 :])


def rows_of(piece: Piece, width: int) -> slice:
    """Return which rows a piece has."""
    return slice(piece.offset // width, (piece.offset + piece.count) // width)


def matched(
    ours: Mapping[str, int], our_rows: int, theirs: Mapping[str, int], their_rows: int
) -> Tensor:
    """Return the row of the same token in another vocabulary, int32 [our rows].

    It is -1 for a token that the other has not. A row of no token, with which a table is padded, is
    matched with that of the same number if the other is padded there as well.

    Args:
        ours: our tokens with their rows.
        our_rows: how many rows we have, which may be more or fewer than tokens.
        theirs: the other's tokens with their rows.
        their_rows: how many rows it has.
    """
    rows = torch.arange(our_rows, dtype=torch.int32)
    rows[their_rows:] = -1
    for numbers in (ours.values(), theirs.values()):
        taken = torch.tensor(list(numbers), dtype=torch.int64)
        rows[taken[taken < our_rows]] = -1
    pairs = [(row, theirs.get(token, their_rows)) for token, row in ours.items() if row < our_rows]
    if pairs:
        numbers, found = torch.tensor(pairs, dtype=torch.int64).T
        rows[numbers] = torch.where(found < their_rows, found, -1).to(torch.int32)
    return rows
