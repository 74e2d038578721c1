"""Batches of rows of similar length, in which a model answers as it does for each row alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from perdure.models.base import Base
from perdure.models.padding import Batches


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn off dropout and gradients for a block, and restore each module's mode after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not inference_mode, because training must be able to use buffers that are made here.
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def batches(
    sequences: Sequence[Sequence[int]],
    batch_size: int,
    together: Batches = "any",
    apart: Sequence[int] | None = None,
) -> Iterator[list[int]]:
    """Yield batches of indices of sequences of similar length.

    The longest come first, so that a run that needs too much memory fails at once.

    Args:
        sequences: the sequences.
        batch_size: the most sequences in a batch.
        together: which sequences may share a batch without changing the model's output for them:
            any, only those of equal length, or none.
        apart: a number for each sequence; those with different numbers never share a batch.
    """
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    groups: dict[tuple[int, int], list[int]] = {}
    for i in order:
        length = len(sequences[i]) if together == "equal" else 0
        groups.setdefault((length, apart[i] if apart else 0), []).append(i)
    size = 1 if together == "single" else batch_size
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def feature_batches(
    base: Base, row_features: Sequence[dict[str, Any]], batch_size: int
) -> Iterator[list[int]]:
    """Yield batches of indices of features, for inputs and labels that are padded on the right."""
    together, target_lengths = base.padding.right, None
    if together == "equal" and base.kind == "seq2seq":
        target_lengths = [len(row["labels"]) for row in row_features]
    inputs = [row["input_ids"] for row in row_features]
    return batches(inputs, batch_size, together=together, apart=target_lengths)
