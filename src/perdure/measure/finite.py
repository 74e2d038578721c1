"""Refuses to measure a model whose outputs are infinite or not numbers."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from perdure.errors import NotFiniteError


def check_logits(logits: Tensor, where: str) -> None:
    """Check logits [..., vocabulary]; each position must have a largest one that is finite.

    A model may give a token -inf, which rules it out, but not all of them.

    Args:
        logits: the logits.
        where: what the error line begins with.

    Raises:
        NotFiniteError: a largest logit is infinite or not a number.
    """
    largest = logits.amax(-1)  # NaN if there is one
    if not bool(largest.isfinite().all()):
        raise NotFiniteError(
            f"{where}: the model's outputs are not finite, so they cannot be measured; its weights "
            "are damaged, or overflow in this data type"
        )


class FiniteLogits(LogitsProcessor):
    """Checks the logits of each generated token, and leaves them unchanged.

    Args:
        where: the name of the rows, with which the error line begins.
    """

    def __init__(self, where: str):
        self.where = where

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        check_logits(scores, self.where)
        return scores
