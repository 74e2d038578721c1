"""What a model loses on labels: which logits answer which labels, and the cross-entropy of them.

One rule for the three kinds. A causal model's logits are [batch, time, vocabulary] and position t
predicts label t + 1; an encoder-decoder's have the same shape and position t predicts label t; an
encoder's are [batch, labels], with one label [batch] a row.
"""

from torch import Tensor, nn

from perdure.data.tokens import IGNORED
from perdure.models.kinds import Kind


def predicted(labels: Tensor, kind: Kind) -> Tensor:
    """The labels that some logit predicts: a causal model predicts no first one."""
    return labels[:, 1:] if kind == "causal" else labels


def aligned(logits: Tensor, labels: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Logits and labels such that the logits of a place predict the label of the same place."""
    return logits[:, :-1] if kind == "causal" else logits, predicted(labels, kind)


def token_loss(logits: Tensor, labels: Tensor, num_items: Tensor | int, kind: Kind) -> Tensor:
    """Summed cross-entropy over the labels that are not -100, divided by `num_items`.

    With the number of items of the whole accumulated batch, k micro-batches add up to one large
    batch.
    """
    logits, labels = aligned(logits, labels, kind)
    loss = nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss / num_items


def count_items(batch: dict[str, Tensor], kind: Kind) -> Tensor:
    """How many terms `token_loss` sums in a batch."""
    return predicted(batch["labels"], kind).ne(IGNORED).sum()


def row_losses(logits: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """The mean cross-entropy of each row of a batch [batch], over its labels that are not -100."""
    logits, labels = aligned(logits, labels, kind)
    losses = nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    learned = labels.ne(IGNORED).view(len(labels), -1)
    return losses.view_as(learned).sum(1) / learned.sum(1)


def learned_places(logits: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """The logits [places, choices], in fp32, where there is a label to be learned."""
    logits, labels = aligned(logits, labels, kind)
    return logits[labels != IGNORED].float()


def places_of_rows(labels: Tensor, kind: Kind) -> list[int]:
    """How many of the places of `learned_places` each row has."""
    labels = predicted(labels, kind)
    return labels.ne(IGNORED).reshape(len(labels), -1).sum(1).tolist()
