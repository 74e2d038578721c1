"""How much a row surprises a model, as a rule to choose the memory (`memory.choose: surprise`).

    surprise(row) = - (1 / T) sum_t log p(answer_t | prompt, answer_<t)

SuRe (2511.22367) keeps the most surprising rows of a task. Here the surprise is computed with the
model before it learns the task, over the tokens of the answer; the authors also describe it over
whole sequences, and their code, as far as we recall, can also use the model after the task. For an
encoder the answer is one label, among all labels of its head, in which the new ones are newly
initialized. The other half of SuRe, a slow learner that averages the weights of the fast one, is
not implemented.
"""

from collections.abc import Sequence
from typing import Any

from perdure.data.tokens import Collator
from perdure.measure.batches import evaluating, feature_batches
from perdure.models.base import Base
from perdure.train.losses import row_losses
from perdure.train.step import task_loss


def surprise(base: Base, rows: Sequence[dict[str, Any]], size: int) -> list[float]:
    """The surprise of each row, given as features, computed in batches of `size`."""
    device = next(base.model.parameters()).device
    collate = Collator(base.tokenizer, base.kind)
    surprises = [0.0] * len(rows)
    with evaluating(base.model):
        for indices in feature_batches(base, rows, size):
            batch = collate([rows[i] for i in indices])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            _, outputs = task_loss(base.model, bare=base.model, inputs=batch, kind=base.kind)
            means = row_losses(outputs.logits, batch["labels"], base.kind).tolist()
            for i, mean in zip(indices, means, strict=True):
                surprises[i] = mean
    return surprises
