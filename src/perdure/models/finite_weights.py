"""Refuses weights that are infinite or not numbers."""

import torch
from torch import nn

from perdure.errors import NotFiniteError


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # others are quantised


def check_weights(model: nn.Module, where: str) -> None:
    """Check all weights of a model, in about the time that it takes to read them once.

    Args:
        model: the model.
        where: where the weights come from, with which the error line begins.

    Raises:
        NotFiniteError: a weight is infinite or not a number; the line names its tensor.
    """
    for name, weights in model.named_parameters():
        if weights.dtype not in DTYPES or weights.is_meta:
            continue
        # A sum is fast, and is not finite if one of the weights is not, or else only by overflow.
        total = weights.detach().sum(dtype=torch.promote_types(weights.dtype, torch.float32))
        if not bool(total.isfinite()) and not bool(weights.isfinite().all()):
            raise NotFiniteError(
                f"{where}: its weight {name} has values that are infinite or not numbers; restore "
                "its files from where they came from, or give another one"
            )
