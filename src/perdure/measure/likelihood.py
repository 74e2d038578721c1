"""How probable a model finds given answers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from perdure.data.tokens import IGNORED, Collator
from perdure.measure.batches import feature_batches
from perdure.measure.finite import check_logits
from perdure.models.base import Base
from perdure.models.kinds import aligned


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
    logits, labels = answer_logits(base, batch)
    check_logits(logits, where, of_interest=labels != IGNORED)
    losses = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return (-losses.view(labels.shape).sum(1)).tolist()


def answer_logits(base: Base, batch: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Run a batch of features, padded on the right, through a model that generates.

    Returns:
        The logits [batch, time, vocabulary], and the labels [batch, time] that they predict, which
        are -100 where nothing is learned.
    """
    device = next(base.model.parameters()).device
    collated = Collator(base.tokenizer, base.kind)(batch)
    inputs = {name: tensor.to(device) for name, tensor in collated.items()}
    labels = inputs["labels"]
    if base.kind == "causal":
        # Position t predicts token t + 1, so nothing predicts the first token. Logits are only made
        # from the first learned token of the batch on: with a large vocabulary they would otherwise
        # take most of the memory.
        first = min(_first_learned(row["labels"]) for row in batch)
        labels = labels[:, max(1, first) - 1 :]
        del inputs["labels"]
        logits = base.model(**inputs, logits_to_keep=labels.shape[1]).logits
    else:
        logits = base.model(**inputs).logits
    return aligned(logits, labels, base.kind)


def _first_learned(labels: Sequence[int]) -> int:
    return next(i for i, label in enumerate(labels) if label != IGNORED)
