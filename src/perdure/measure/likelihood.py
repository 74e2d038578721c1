"""How probable a model finds given answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from perdure.data.tokens import IGNORED, Collator
from perdure.measure.batches import feature_batches
from perdure.measure.finite import check_logits
from perdure.models.base import Base
from perdure.models.decoder import decoder_inputs
from perdure.models.head import predicting, run_with_logits_at
from perdure.models.kinds import Kind


def log_likelihoods(
    base: Base, row_features: Sequence[dict[str, Any]], batch_size: int, where: str = "the rows"
) -> list[float]:
    """Return log p(completion | prompt) of each row, summed over its tokens, in nats.

    Raises:
        NotFiniteError: the model's outputs are not finite; the line begins with `where`.
    """
    values = [0.0] * len(row_features)
    for batch in feature_batches(base, row_features, batch_size):
        batch_values = _log_likelihoods(base, [row_features[i] for i in batch], where)
        for i, value in zip(batch, batch_values, strict=True):
            values[i] = value
    return values


def _log_likelihoods(base: Base, batch: list[dict[str, Any]], where: str) -> list[float]:
    """Return the log-likelihoods of a batch of features with one forward pass."""
    logits = answer_logits(base, batch)
    check_logits(logits, where)
    answers = [answer_ids(base.kind, row) for row in batch]
    labels = torch.tensor([i for ids in answers for i in ids], device=logits.device)
    losses = cross_entropy(logits.float(), labels, reduction="none")
    return [-part.sum().item() for part in losses.split([len(ids) for ids in answers])]


def answer_ids(kind: Kind, row: Mapping[str, Any]) -> list[int]:
    """Return the labels of a row that `answer_logits` predict."""
    labels = row["labels"][1:] if kind == "causal" else row["labels"]
    return [label for label in labels if label != IGNORED]


def answer_logits(base: Base, batch: Sequence[dict[str, Any]]) -> Tensor:
    """Run a batch of features, padded on the right, through a model that generates.

    Returns:
        The logits [tokens, vocabulary] that predict the answers, one row after the other.
    """
    device = next(base.model.parameters()).device
    collated = Collator(base.tokenizer, base.kind)(batch)
    inputs = {name: tensor.to(device) for name, tensor in collated.items()}
    labels = inputs.pop("labels")
    if base.kind == "seq2seq":
        inputs["decoder_input_ids"] = decoder_inputs(base.model, labels)
    where = predicting(labels, base.kind)
    return run_with_logits_at(base.model, base.model, where, **inputs).logits
