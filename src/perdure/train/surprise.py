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

from perdure.data.tokens import Collator
from perdure.measure.predict import evaluating, feature_batches
from perdure.models.base import Base
from perdure.train.losses import row_losses
from perdure.train.step import task_loss


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
            means = row_losses(outputs.logits, batch["labels"], base.kind).tolist()
            for i, mean in zip(chosen, means, strict=True):
                found[i] = mean
    return found
