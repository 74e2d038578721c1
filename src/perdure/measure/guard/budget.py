"""How many rows the guard may ask, so that it takes at most a share of what a stage takes.

The number must be the same on every machine, so it is not measured but computed from tokens. The
unit is what a token takes in a forward pass over a batch of whole rows. A backward pass takes twice
as much, and a generated token more, because a pass for it reads all weights for one token of each
row.
"""

from collections.abc import Sequence

from perdure.measure.guard.rows import GuardRow
from perdure.models.base import Base


BACKWARD = 2.0  # a token of a backward pass
GENERATED = 3.0  # a generated token, in batches of 32 rows
FEWEST = 7  # rows, one of each bundled skill; for fewer, the guard is left out


def affordable(share: float, forward: float, backward: float, row_cost: float) -> int:
    """Return how many rows fit into a share of a stage.

        rows = share * (forward + 2 backward) / row_cost

    Args:
        share: the share of what the stage takes.
        forward: the tokens that passed forward while the stage was learned.
        backward: the tokens that passed backward.
        row_cost: what a row of the guard takes (`cost`).
    """
    return int(share * (forward + BACKWARD * backward) / row_cost)


def cost(base: Base, rows: Sequence[GuardRow], system: str | None, max_new_tokens: int) -> float:
    """Return what asking a row takes on average, in tokens of a forward pass.

    Both models read the prompt and write an answer, of at most `max_new_tokens`, and read the
    base's answer once more for the KL. It counts as if the base had not been asked before.
    """
    texts = [" ".join([system or "", *(m["content"] for m in row.messages)]) for row in rows]
    prompt = sum(map(len, base.tokenizer(texts)["input_ids"])) / len(rows)
    asked = prompt + GENERATED * max_new_tokens
    read_again = prompt + max_new_tokens
    return 2 * (asked + read_again)
