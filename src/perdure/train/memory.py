"""What is kept of a learned task, how it is chosen, and how it is drawn."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count, islice
from typing import Any

from perdure.data.rows import Row, answer
from perdure.data.task import answers_are_closed
from perdure.seeds import derive


def choose(
    rows: Sequence[Row],
    ratio: float,
    seed: int,
    surprise: Sequence[float] | None = None,
    options: Sequence[str] | None = None,
    per_answer: int = 1,
) -> list[Row]:
    """The rows to keep of a task, without replacement, in the order of the task.

    Of N rows max(1, round(ratio N)) are kept, none when the ratio is 0. Where the answers are
    closed, as many more are kept as it takes for `per_answer` rows of each answer that has so many.

    Closed answers take turns: the k-th row of every answer is drawn before any k+1-th, and where
    there are more answers than rows to keep, chance alone says which of them have one. Free text
    is drawn uniformly, unless there are no more answers than rows to keep. With `surprise`, a
    number a row, as many rows are kept, but those that surprise most, of equal ones the first.

    Args:
        rows: of the task. A row of several references counts by the first, a conversation by what
            the assistant said last.
        ratio: share of the rows, from 0 to 1.
        seed: of the draw.
        surprise: see `train/surprise.py`.
        options: the answers that the task declares, which are closed whatever their number.
        per_answer: rows of each closed answer to keep at least; 0 leaves it to the ratio.
    """
    if not ratio:
        return []
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    by_answer: dict[str, list[int]] = {}
    for i in order:
        by_answer.setdefault("" if "text" in rows[i] else answer(rows[i]).strip(), []).append(i)
    count = max(1, round(ratio * len(rows)))
    closed = answers_are_closed(rows, options)
    if closed:
        count = max(count, sum(min(per_answer, len(group)) for group in by_answer.values()))
    count = min(count, len(rows))
    if surprise is not None:
        order = sorted(range(len(rows)), key=lambda i: -surprise[i])
    elif closed or len(by_answer) <= count:
        groups = list(by_answer.values())
        if len(groups) > count:  # in the order of first appearance the frequent ones come first
            random.Random(derive(seed, "answers")).shuffle(groups)
        turns = sorted(
            (turn, n, i) for n, group in enumerate(groups) for turn, i in enumerate(group)
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
        self._aged = lru_cache(self._turns)

    def __bool__(self) -> bool:
        return bool(self.tasks)

    def __len__(self) -> int:
        return sum(len(features) for features in self.tasks.values())

    def draw(
        self, start: int, count: int, decay: float = 0.0, max_repeats: int | None = None
    ) -> list[dict[str, Any]]:
        """The features with draw numbers start .. start + count - 1.

        With a `decay` the task of age a has a share of the draws in proportion to a^-decay, rounded
        down or up at any draw. The newest task's age is 1, and the oldest are the general rows.

        With `max_repeats` a row's first so many draws give it, and the later ones give nothing.
        """
        drawn = []
        for i in range(start, start + count):
            name, own = self._aged(decay)[i] if decay else self._turn(i)
            features = self.tasks[name]
            again, row = divmod(own, len(features))  # the row has come `again` times before
            if max_repeats is None or again < max_repeats:
                drawn.append(features[self._order(name, again, len(features))[row]])
        return drawn

    def step(self, number: int, count: int) -> list[dict[str, Any]]:
        """The features of step `number`, from 0, of steps that have `count` rows each.

        They are the next `count` draws. Where the memory has fewer rows than that, no row is
        repeated for it: the step is smaller, and has each row once, in an order of its own.
        """
        return self.draw(number * count, count) if count <= len(self) else self.whole(number)

    def whole(self, number: int) -> list[dict[str, Any]]:
        """All features, each once, in order `number` of their orders."""
        rows = [row for features in self.tasks.values() for row in features]
        return [rows[i] for i in self._shuffled("step", number, len(rows))]

    def sample(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Distinct features, `count` in all, of each task in proportion to its rows."""
        names = list(self.tasks)
        sizes = [len(features) for features in self.tasks.values()]
        shares = Counter(names[who] for who, _ in islice(turns(sizes), count))
        return [
            row
            for name, share in shares.items()
            for row in random.Random(derive(seed, name)).sample(self.tasks[name], share)
        ]

    def _turn(self, i: int) -> tuple[str, int]:
        """The task of draw number i, in a new order each time all have had theirs, and its own."""
        names = list(self.tasks)
        cycle, place = divmod(i, len(names))
        return names[self._order("tasks", cycle, len(names))[place]], cycle

    def _turns(self, decay: float) -> "_Made":
        newest_first = list(reversed(self.tasks))
        # whole numbers: shares that are exact, and the same on every machine
        weights = [round(2**32 * age**-decay) for age in range(1, len(newest_first) + 1)]
        return _Made((newest_first[who], own) for who, own in turns(weights))

    def _shuffled(self, purpose: str, cycle: int, count: int) -> list[int]:
        order = list(range(count))
        random.Random(derive(self.seed, "draw", purpose, cycle)).shuffle(order)
        return order


def turns(weights: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Who has turn 0, 1, 2, ..., and the number of that turn among its own.

    After n turns each has had n w / sum(w) of them, rounded down or up. Of those who have had less
    than their share, it is the one whose next turn is due first.
    """
    had, total = [0] * len(weights), sum(weights)
    for n in count(1):
        behind = [i for i, w in enumerate(weights) if had[i] * total < n * w]
        who = min(behind, key=lambda i: -(-(had[i] + 1) * total // weights[i]))
        yield who, had[who]
        had[who] += 1


class _Made:
    """What an endless iterator yields, by number."""

    def __init__(self, more: Iterator[tuple[str, int]]):
        self.made: list[tuple[str, int]] = []
        self.more = more

    def __getitem__(self, i: int) -> tuple[str, int]:
        self.made.extend(islice(self.more, max(0, i + 1 - len(self.made))))
        return self.made[i]
