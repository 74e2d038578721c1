"""How often each remembered row is rehearsed while a stage is learned, whoever rehearses it."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Rehearsals:
    """Of each remembered row the times that a gradient is taken on it.

    Beside the new rows of a batch, in a step of a method's own, or for a comparison with the new
    rows' gradient; a row that is only looked at does not count. Rows are told by what they are, not
    by what they say: two remembered rows of one content count apart.

    A batch is made before the step that learns it, so the collator lists its old rows with `made`,
    and the step counts them with `learned`. The counts are in every checkpoint, and a run that was
    stopped counts what one that was not does.
    """

    name = "(rehearsals)"  # no method's

    def __init__(self, tasks: Mapping[str, Sequence[dict[str, Any]]]):
        self.rows = [row for features in tasks.values() for row in features]
        self.number = {id(row): i for i, row in enumerate(self.rows)}
        self.times = torch.zeros(len(self.rows), dtype=torch.int64)
        self.waiting: deque[list[dict[str, Any]]] = deque()

    def made(self, rows: list[dict[str, Any]]) -> None:
        """The old rows of a batch that is to be learned, in the order of the batches."""
        self.waiting.append(rows)

    def learned(self) -> None:
        """The next of these batches is learned."""
        self.count(self.waiting.popleft())

    def count(self, rows: Sequence[dict[str, Any]]) -> None:
        """A gradient is taken on these rows; those that are not remembered are left out."""
        for row in rows:
            number = self.number.get(id(row))
            if number is not None:
                self.times[number] += 1

    def summary(self) -> dict[str, float | int]:
        """The remembered rows, of which there is one, and how often they were rehearsed."""
        mean = round(self.times.double().mean().item(), 4)
        return {"rows": len(self.rows), "mean": mean, "most": int(self.times.max())}

    def state_dict(self) -> dict[str, Tensor]:
        return {"times": self.times}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.times = state["times"].clone()
