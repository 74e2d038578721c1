"""Counts how often each remembered row is rehearsed while a stage is learned."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Rehearsals:
    """Counts, for each remembered row, how often a gradient is computed on it.

    The row may be in a batch with new rows, in a step that a method takes by itself, or in a
    gradient that is compared with that of the new rows. A row on which only the outputs are read
    does not count. Rows are identified by object, not by content: two remembered rows with the same
    content are counted separately.

    A batch is collated before the step that learns it, so the collator calls `add_batch` with its
    old rows, and the step calls `count_batch`. The counts are saved in every checkpoint, so that a
    resumed run counts the same as one that was never stopped.
    """

    name = "(rehearsals)"  # in the checkpoint; the parentheses keep it apart from methods' names

    def __init__(self, tasks: Mapping[str, Sequence[dict[str, Any]]]):
        self.rows = [row for features in tasks.values() for row in features]
        self._task = {id(row): name for name, features in tasks.items() for row in features}
        self.number = {id(row): i for i, row in enumerate(self.rows)}
        self.times = torch.zeros(len(self.rows), dtype=torch.int64)
        self.waiting: deque[list[dict[str, Any]]] = deque()

    def task_of(self, row: dict[str, Any]) -> str | None:
        """The task of a remembered row; None for other rows, such as those of self-replay."""
        return self._task.get(id(row))

    def add_batch(self, rows: list[dict[str, Any]]) -> None:
        """Add the old rows of a collated batch; batches are learned in the order of the calls."""
        self.waiting.append(rows)

    def count_batch(self) -> None:
        """Count the old rows of the next batch, which is being learned."""
        self.count(self.waiting.popleft())

    def count(self, rows: Sequence[dict[str, Any]]) -> None:
        """Count rows on which a gradient is computed; rows that are not remembered are ignored."""
        for row in rows:
            number = self.number.get(id(row))
            if number is not None:
                self.times[number] += 1

    def summary(self) -> dict[str, float | int]:
        """The number of remembered rows (at least one), and how often they were rehearsed."""
        mean = round(self.times.double().mean().item(), 4)
        return {"rows": len(self.rows), "mean": mean, "most": int(self.times.max())}

    def state_dict(self) -> dict[str, Tensor]:
        return {"times": self.times.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.times = state["times"].clone()
