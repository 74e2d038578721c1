"""Lists of token ids as one rectangular batch."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase


Side = Literal["left", "right"]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the pad token, or any token if there is none (GPT-2), as the mask hides it."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(i for i in ids if i is not None)  # type: ignore[return-value]


def padded(
    rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, side: Side = "right"
) -> tuple[Tensor, Tensor]:
    """Pad token ids to the longest row.

    The tokenizer's own `pad` is not used, because it needs a pad token, and a tokenizer that lacks
    one would have to be changed.

    Returns:
        The ids and their attention mask, both int64 [rows, longest].
    """
    ids = [torch.tensor(row, dtype=torch.int64) for row in rows]
    masks = [torch.ones_like(row) for row in ids]
    fill = pad_id(tokenizer)
    return (
        pad_sequence(ids, batch_first=True, padding_value=fill, padding_side=side),
        pad_sequence(masks, batch_first=True, padding_side=side),
    )
