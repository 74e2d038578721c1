"""The base with the tokens that only checkpoints have, for the vocabulary `union`.

The new tokens are the added tokens of the checkpoints, in the order of their arrival. They are
added to the base's tokenizer as they were to theirs. A row of a new token is

    sum_i w_i row_i / sum_i w_i

over the checkpoints that have the token, in fp32. It is a row of the base that no checkpoint has
changed, so the rule does nothing to it.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerBase

from perdure.errors import PerdureError
from perdure.merging.alignment import SHOWN, Alignment, matched, rows_of, width_of
from perdure.merging.checkpoint import Stored, Tensors, shape_of
from perdure.merging.fold import Piece
from perdure.merging.model import Checkpoint, Model
from perdure.merging.token_axes import SIZE
from perdure.merging.vocabulary import tokenizer_of
from perdure.models.base import load_tokenizer
from perdure.parsing import read_json


@dataclass(frozen=True)
class Union:
    """The base with further tokens.

    Args:
        base: the base with further rows.
        tokenizer: its tokenizer with further tokens.
        rows: the number of rows for tokens.
        tokens: the new tokens.
    """

    base: Model
    tokenizer: PreTrainedTokenizerBase
    rows: int
    tokens: tuple[str, ...]

    def line(self) -> str:
        """Return what was added, in words."""
        names = ", ".join(map(repr, self.tokens[:SHOWN]))
        return (
            f"note: {len(self.tokens)} tokens are added to those of {self.base.name} (such as "
            f"{names}); what is written has {self.rows} rows for tokens"
        )

    def write(self, folder: Path) -> None:
        """Write the tokenizer and the size of the vocabulary into the folder of a merged model.

        Raises:
            PerdureError: the tokenizer that is written does not load as it is.
        """
        for name in ("added_tokens.json", "special_tokens_map.json"):  # older files of the base
            (folder / name).unlink(missing_ok=True)
        self.tokenizer.save_pretrained(folder)
        file = folder / "config.json"
        text = json.dumps(_with_size(read_json(file), self.rows), sort_keys=True, indent=2)
        file.write_text(text + "\n", encoding="utf-8")
        if load_tokenizer(str(folder)).get_vocab() != self.tokenizer.get_vocab():
            raise PerdureError(
                f"{self.base.name}: its tokenizer does not load with the new tokens; give "
                "--vocabulary base"
            )


def _with_size(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return a config, as its file has it, with another size of the vocabulary."""
    return {
        key: rows if key == SIZE else _with_size(one, rows) if isinstance(one, dict) else one
        for key, one in config.items()
    }


def unite(base: Model, checkpoints: Sequence[Checkpoint]) -> Union | None:
    """Return the base with all tokens of checkpoints, None if they have none of their own.

    The checkpoints, which are aligned with the base, are then aligned with the result.

    Raises:
        PerdureError: the tokens of a checkpoint cannot be added.
    """
    if not any(c.alignment is not None and c.alignment.own for c in checkpoints):
        return None
    new: dict[str, AddedToken] = {}
    for checkpoint in checkpoints:
        for token, added in _new_tokens(base, checkpoint).items():
            new.setdefault(token, added)
    axes = base.token_axes
    count = next(base.tensors.stored[name].shape[axis] for name, axis in axes.items())
    before = base.tokenizer.get_vocab()
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.add_tokens(list(new.values()))
    after = tokenizer.get_vocab()
    same = all(after.get(token) == row for token, row in before.items())
    if not same or after.keys() != {*before, *new} or max(before.values()) >= count:
        raise PerdureError(
            f"{base.name}: its tokenizer takes no further tokens, or has some without rows; give "
            "--vocabulary base"
        )
    rows = max(count, max(after.values()) + 1)
    donors = []
    for checkpoint in checkpoints:
        alignment = _extended(base, checkpoint, [after[token] for token in new], tuple(new), rows)
        checkpoint.alignment = alignment
        if (alignment.fresh >= 0).any():
            donors.append(checkpoint)
    united = copy.copy(base)
    united.tensors = Widened(base.tensors, axes, rows, [after[token] for token in new], donors)
    return Union(united, tokenizer, rows, tuple(new))


def _new_tokens(base: Model, checkpoint: Checkpoint) -> dict[str, AddedToken]:
    """Return the tokens of a checkpoint that are added to those of the base, in order.

    Raises:
        PerdureError: they cannot be added.
    """
    name = checkpoint.name
    if checkpoint.pack is not None:
        raise PerdureError(f"{name}: unpack it, because a pack has no rows for new tokens")
    changed = checkpoint.adapter.changed if checkpoint.adapter is not None else {}
    if base.token_axes.keys() & changed.keys():
        raise PerdureError(
            f"{name}: changes rows of tokens, which --vocabulary union takes from whole models "
            "only; merge it into its base with PEFT's merge_and_unload, and give that model"
        )
    own = checkpoint.alignment.own if checkpoint.alignment is not None else None
    if not own:
        return {}
    if checkpoint.adapter is not None:
        raise PerdureError(
            f"{name}: has tokens that {base.name} has not, and no rows for them; merge it into "
            "its base with PEFT's merge_and_unload, and give that model, or --vocabulary base"
        )
    if checkpoint.weight is not None and checkpoint.weight <= 0:
        raise PerdureError(
            f"{name}: has tokens of its own, whose rows are weighted means, so that its weight "
            f"must be > 0, got {checkpoint.weight:g}; give --vocabulary base"
        )
    tokenizer = tokenizer_of(base, checkpoint)
    added = {} if tokenizer is None else tokenizer.added_tokens_decoder
    by_text = {one.content: one for one in added.values()}
    other = next((token for token in own if token not in by_text), None)
    if other is not None:
        raise PerdureError(
            f"{name}: its token {other!r} is a part of its own tokenizer, not one that was added "
            f"to that of {base.name}, whose rules of dividing texts would never yield it; give "
            "--vocabulary base"
        )
    return {token: by_text[token] for token in own}


def _extended(
    base: Model, checkpoint: Checkpoint, numbers: list[int], new: tuple[str, ...], rows: int
) -> Alignment:
    """Return the alignment of a checkpoint with the base with new tokens.

    Args:
        base: the base without them.
        checkpoint: the checkpoint.
        numbers: the rows of the new tokens.
        new: the new tokens.
        rows: the number of rows with them.
    """
    alignment = checkpoint.alignment
    if alignment is None:
        ours = base.tokenizer.get_vocab()
        count = next(base.tensors.stored[n].shape[axis] for n, axis in base.token_axes.items())
        axes = base.token_axes if checkpoint.adapter is None else {}
        alignment = Alignment(matched(ours, count, ours, count), axes, shared=len(ours))
    longer = torch.full((rows,), -1, dtype=torch.int32)
    longer[: len(alignment.rows)] = alignment.rows
    longer[numbers] = -1  # they are the same in the base, whose rows are their mean
    own = alignment.own or {}
    fresh = torch.tensor([own.get(token, -1) for token in new], dtype=torch.int32)
    return replace(alignment, rows=longer, fresh=fresh)


class Widened(Tensors):
    """The tensors of the base, of which some have further rows.

    Args:
        tensors: the tensors of the base.
        axes: those that have rows for tokens, with the axis.
        rows: the number of rows with the new ones.
        numbers: the rows of the new tokens, of which some may have been padding.
        donors: the checkpoints that have new tokens, whose files are open when tensors are read.
    """

    def __init__(
        self,
        tensors: Tensors,
        axes: dict[str, int],
        rows: int,
        numbers: list[int],
        donors: Sequence[Checkpoint],
    ):
        self.narrow, self.axes, self.donors = tensors, axes, donors
        self.files = tensors.files
        self.stored: dict[str, Stored] = dict(tensors.stored)
        for name, axis in axes.items():
            shape = self.stored[name].shape
            wide = (*shape[:axis], rows, *shape[axis + 1 :])
            self.stored[name] = self.stored[name]._replace(shape=wide)
        # The number of the new token of each row, -1 for a row of the base.
        self.new = torch.full((rows,), -1, dtype=torch.int32)
        self.new[numbers] = torch.arange(len(numbers), dtype=torch.int32)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keep the files of the base open for a block."""
        with self.narrow.open():
            yield

    def read(self, name: str, piece: Piece | None = None) -> Tensor:
        """Return a tensor or a piece of it, in fp32 if it has new rows."""
        if name not in self.axes:
            return self.narrow.read(name, piece)
        shape, axis = self.stored[name].shape, self.axes[name]
        width = width_of(shape, axis)
        count = self.narrow.stored[name].shape[axis]
        part = rows_of(piece, width) if piece else slice(0, len(self.new))
        rows = torch.arange(len(self.new), dtype=torch.int32)[part]
        rows = torch.where(rows < count, rows, -1)
        values = self.narrow.read_rows(name, rows, width)
        new = self.new[part]
        if (new >= 0).any():
            values = values.float()
            values[new >= 0] = self._means(name, new[new >= 0], width)
        return values.view(shape_of(shape, piece) if piece else shape)

    def _means(self, name: str, new: Tensor, width: int) -> Tensor:
        """Return the rows of new tokens, fp32 [tokens, width].

        Args:
            name: the name of the tensor.
            new: the numbers of the tokens.
            width: the elements of a row.
        """
        total = torch.zeros(len(new), width)
        weights = torch.zeros(len(new), 1)
        for checkpoint in self.donors:
            assert checkpoint.alignment is not None
            weight = 1.0 if checkpoint.weight is None else checkpoint.weight
            rows = checkpoint.alignment.fresh[new]
            tensors, own_name = checkpoint.with_rows(name)
            total += weight * tensors.read_rows(own_name, rows, width).float()
            weights += weight * (rows >= 0)[:, None]
        return total / weights
