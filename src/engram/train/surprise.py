"""How much a row surprises a model, by which a memory may be chosen (`memory.choose: surprise`).

    surprise(row) = - (1 / T) sum_t log p(answer_t | prompt, answer_<t)

SuRe (2511.22367) keeps the rows of a task that surprise most. Ours is taken of the model as it is
before it learns the task, and over the tokens of the answer; the authors also speak of sequences as
a whole, and their code, as recalled, offers the model after the task as well. An encoder's answer
is its label, one among all of its head with the new ones as they begin. The other half of SuRe, a
slow learner that averages the weights of the fast one, is not built.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from engram.data.tokens import IGNORED, Collator, Kind
from engram.measure.predict import evaluating, feature_batches
from engram.models.base import Base
from engram.train.step import task_loss


def surprise(base: Base, rows: Sequence[dict[str, Any]], size: int) -> list[float]:
    """The surprise of each of `rows`, which are features, in batches of `size`."""
    device = next(base.model.parameters()).device
    collate = Collator(base.tokenizer, base.kind)
    found = [0.0] * len(rows)
    with evaluating(base.model):
        for chosen in feature_batches(base, rows, size):
            batch = collate([rows[i] for i in chosen])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            _, outputs = task_loss(base.model, base.model, batch, base.kind)
            means = mean_loss(outputs.logits, batch["labels"], base.kind).tolist()
            for i, mean in zip(chosen, means, strict=True):
                found[i] = mean
    return found


def mean_loss(logits: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """The mean cross-entropy of each row of a batch, over its labels that are not -100."""
    if kind == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    learned = labels.ne(IGNORED).view(len(labels), -1)
    return losses.view_as(learned).sum(1) / learned.sum(1)
