"""What is kept of a learned task, how it is chosen, and how it is drawn."""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from engram.data.rows import Row, answer
from engram.seeds import derive


def choose(rows: Sequence[Row], ratio: float, seed: int) -> list[Row]:
    """The rows to keep of a task of N rows: max(1, round(ratio N)), none when the ratio is 0.

    Balanced over the distinct answers when there are no more answers than rows to keep, else
    uniform; without replacement, in the order of the task.
    """
    if not ratio:
        return []
    count = min(len(rows), max(1, round(ratio * len(rows))))
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    by_answer: dict[str, list[int]] = {}
    for i in order:
        by_answer.setdefault("" if "text" in rows[i] else answer(rows[i]).strip(), []).append(i)
    if len(by_answer) <= count:  # take turns: the k-th row of every answer before any k+1-th
        turns = sorted(
            (turn, n, i) for n, g in enumerate(by_answer.values()) for turn, i in enumerate(g)
        )
        order = [i for _, _, i in turns]
    return [rows[i] for i in sorted(order[:count])]


class Memory:
    """The remembered rows of past tasks, as features, and an endless balanced draw over them.

    Draw number i goes to the tasks in turn, and within a task through its rows in a shuffled order,
    a new order each time the rows are exhausted. A draw depends on (seed, i) only, so that a run
    that stopped finds its place again without any state.
    """

    def __init__(self, tasks: dict[str, list[dict[str, Any]]], seed: int):
        self.tasks = {name: features for name, features in tasks.items() if features}
        self.seed = seed
        self._order = lru_cache(maxsize=4 * len(self.tasks) + 1)(self._shuffled)

    def __bool__(self) -> bool:
        return bool(self.tasks)

    def __len__(self) -> int:
        return sum(len(features) for features in self.tasks.values())

    def draw(self, start: int, count: int) -> list[dict[str, Any]]:
        """The features with draw numbers start .. start + count - 1."""
        names = list(self.tasks)
        drawn = []
        for i in range(start, start + count):
            cycle, place = divmod(i, len(names))
            name = names[self._order("tasks", cycle, len(names))[place]]
            features = self.tasks[name]
            again, row = divmod(cycle, len(features))
            drawn.append(features[self._order(name, again, len(features))[row]])
        return drawn

    def _shuffled(self, purpose: str, cycle: int, count: int) -> list[int]:
        order = list(range(count))
        random.Random(derive(self.seed, "draw", purpose, cycle)).shuffle(order)
        return order
