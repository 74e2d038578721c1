"""The task loss: the cross-entropy of the logits that predict a label (`models.head`).

The rule is the same for the three kinds of model.
"""

from torch import Tensor, nn

from perdure.data.tokens import IGNORED
from perdure.models.head import predicting
from perdure.models.kinds import Kind, predicted


def token_loss(logits: Tensor, labels: Tensor, num_items: Tensor | int, kind: Kind) -> Tensor:
    """The summed cross-entropy over the labels that are not -100, divided by `num_items`.

    If `num_items` counts the whole accumulated batch, the losses of its micro-batches add up to the
    loss of one large batch.

    Args:
        logits: [positions, choices], those that predict a label.
        labels: of the batch, [batch, time]; those of an encoder are [batch].
        num_items: divides the sum.
        kind: the kind of model.
    """
    loss = nn.functional.cross_entropy(
        logits.float(), _predicted_labels(labels, kind), reduction="sum"
    )
    return loss / num_items


def count_items(batch: dict[str, Tensor], kind: Kind) -> Tensor:
    """The number of terms that `token_loss` sums in a batch."""
    return predicted(batch["labels"], kind).ne(IGNORED).sum()


def row_losses(logits: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """The mean cross-entropy [batch] of each row over its labels; arguments as for `token_loss`."""
    losses = nn.functional.cross_entropy(
        logits.float(), _predicted_labels(labels, kind), reduction="none"
    )
    row = predicting(labels, kind).nonzero()[:, 0]
    sums = losses.new_zeros(len(labels)).index_add(0, row, losses)
    return sums / row.bincount(minlength=len(labels))


def positions_per_row(labels: Tensor, kind: Kind) -> list[int]:
    """How many of the logits that predict a label are of each row."""
    return predicting(labels, kind).reshape(len(labels), -1).sum(1).tolist()


def _predicted_labels(labels: Tensor, kind: Kind) -> Tensor:
    """The labels [positions] that are predicted, the rows one after another."""
    labels = predicted(labels, kind)
    return labels[labels != IGNORED]
