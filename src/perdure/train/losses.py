"""The task loss: the cross-entropy of the logits that predict a label (`models.kinds.aligned`).

The rule is the same for the three kinds of model.
"""

from torch import Tensor, nn

from perdure.data.tokens import IGNORED
from perdure.models.kinds import Kind, aligned, predicted


def token_loss(logits: Tensor, labels: Tensor, num_items: Tensor | int, kind: Kind) -> Tensor:
    """The summed cross-entropy over the labels that are not -100, divided by `num_items`.

    If `num_items` counts the whole accumulated batch, the losses of its micro-batches add up to the
    loss of one large batch.
    """
    logits, labels = aligned(logits, labels, kind)
    loss = nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss / num_items


def count_items(batch: dict[str, Tensor], kind: Kind) -> Tensor:
    """The number of terms that `token_loss` sums in a batch."""
    return predicted(batch["labels"], kind).ne(IGNORED).sum()


def row_losses(logits: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """The mean cross-entropy [batch] of each row, over its labels that are not -100."""
    logits, labels = aligned(logits, labels, kind)
    losses = nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    learned = labels.ne(IGNORED).view(len(labels), -1)
    return losses.view_as(learned).sum(1) / learned.sum(1)


def learned_logits(logits: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """The logits [positions, choices], in fp32, that predict a label that is not -100."""
    logits, labels = aligned(logits, labels, kind)
    return logits[labels != IGNORED].float()


def positions_per_row(labels: Tensor, kind: Kind) -> list[int]:
    """The number of positions that each row has in `learned_logits`."""
    labels = predicted(labels, kind)
    return labels.ne(IGNORED).reshape(len(labels), -1).sum(1).tolist()
