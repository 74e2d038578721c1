"""The memory: which rows of a learned task are remembered, and how they are drawn later."""

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
    """Choose the rows of a task to remember, without replacement.

    Of N rows, max(1, round(ratio N)) are chosen; none if the ratio is 0. If the answers are closed,
    more are chosen where this is needed to have `per_answer` rows of each answer, or all of its
    rows if it has fewer.

    Closed answers take turns: the k-th row of every answer is drawn before the (k+1)-th of any. If
    there are more answers than rows to choose, the answers that get a row are drawn at random. Free
    text is drawn uniformly, unless it has no more distinct answers than rows to choose; then they
    take turns as well. With `surprise`, the same number of rows is chosen, but the most surprising
    ones; of equally surprising rows, the first.

    Args:
        rows: the rows of the task. The answer of a row with several references is the first of
            them, that of a conversation is the last turn of the assistant.
        ratio: the share of the rows to choose, from 0 to 1.
        seed: the seed of the draw.
        surprise: the surprise of each row (`train/surprise.py`).
        options: the answers that the task declares; they are closed whatever their number.
        per_answer: the smallest number of rows to choose for each closed answer; with 0 the ratio
            alone decides.

    Returns:
        The chosen rows, in the order of the task.
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
        if len(groups) > count:  # frequent answers tend to appear first, and would be preferred
            random.Random(derive(seed, "answers")).shuffle(groups)
        turns = sorted(
            (turn, group_number, i)
            for group_number, group in enumerate(groups)
            for turn, i in enumerate(group)
        )
        order = [i for _, _, i in turns]
    return [rows[i] for i in sorted(order[:count])]


class Memory:
    """The remembered rows of past tasks, as features, and an endless balanced draw over them.

    The draws go to the tasks in turn, and within a task to its rows in a shuffled order, which is a
    new one each time the rows are exhausted. Draw number i depends only on (seed, i), so that a
    resumed run needs no state to continue.
    """

    def __init__(self, tasks: dict[str, list[dict[str, Any]]], seed: int):
        self.tasks = {name: features for name, features in tasks.items() if features}
        self.seed = seed
        self._order = lru_cache(maxsize=4 * len(self.tasks) + 1)(self._shuffled)
        self._draws_by_age = lru_cache(self._turns_by_age)

    def __bool__(self) -> bool:
        return bool(self.tasks)

    def __len__(self) -> int:
        return sum(len(features) for features in self.tasks.values())

    def draw(
        self, start: int, count: int, decay: float = 0.0, max_repeats: int | None = None
    ) -> list[dict[str, Any]]:
        """The features of the draws number `start` to `start + count - 1`.

        With a `decay`, the share of a task of age a is proportional to a^-decay; after any number
        of draws, a task has had its share of them, rounded down or up. The newest task has age 1;
        the general rows are the oldest.

        With `max_repeats`, a row is returned in its first `max_repeats` draws only; later draws of
        the row return nothing.
        """
        drawn = []
        for i in range(start, start + count):
            name, turn = self._draws_by_age(decay)[i] if decay else self._turn(i)
            features = self.tasks[name]
            epoch, place = divmod(turn, len(features))  # epoch: earlier draws of the row
            if max_repeats is None or epoch < max_repeats:
                drawn.append(features[self._order(name, epoch, len(features))[place]])
        return drawn

    def step(self, number: int, count: int) -> list[dict[str, Any]]:
        """The features of step `number`, counted from 0, of steps with `count` rows each.

        They are the next `count` draws. If the memory has fewer rows, none is repeated: the step
        has each row once, in an order that depends on `number`.
        """
        return self.draw(number * count, count) if count <= len(self) else self.whole(number)

    def whole(self, number: int) -> list[dict[str, Any]]:
        """All features, each once, in a shuffled order that depends on `number`."""
        rows = [row for features in self.tasks.values() for row in features]
        return [rows[i] for i in self._shuffled("step", number, len(rows))]

    def sample(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Draw `count` distinct features, from each task in proportion to its number of rows."""
        names = list(self.tasks)
        sizes = [len(features) for features in self.tasks.values()]
        shares = Counter(names[index] for index, _ in islice(turns(sizes), count))
        return [
            row
            for name, share in shares.items()
            for row in random.Random(derive(seed, name)).sample(self.tasks[name], share)
        ]

    def _turn(self, i: int) -> tuple[str, int]:
        """The task of draw number i, and its draws before; each cycle of tasks has a new order."""
        names = list(self.tasks)
        cycle, place = divmod(i, len(names))
        return names[self._order("tasks", cycle, len(names))[place]], cycle

    def _turns_by_age(self, decay: float) -> "_Cached":
        newest_first = list(reversed(self.tasks))
        # Integers make the shares exact, and the same on every machine.
        weights = [round(2**32 * age**-decay) for age in range(1, len(newest_first) + 1)]
        return _Cached((newest_first[index], turn) for index, turn in turns(weights))

    def _shuffled(self, purpose: str, cycle: int, count: int) -> list[int]:
        order = list(range(count))
        random.Random(derive(self.seed, "draw", purpose, cycle)).shuffle(order)
        return order


def turns(weights: Sequence[int]) -> Iterator[tuple[int, int]]:
    """An endless sequence of turns: the index of the weight whose turn it is, and its turns before.

    After n turns, an index of weight w has had n w / sum(w) of them, rounded down or up. Of the
    indices with less than their share, the one whose next turn is due first has the turn.
    """
    turns_had, total = [0] * len(weights), sum(weights)
    for n in count(1):
        behind = [i for i, weight in enumerate(weights) if turns_had[i] * total < n * weight]
        index = min(behind, key=lambda i: -(-(turns_had[i] + 1) * total // weights[i]))  # due turn
        yield index, turns_had[index]
        turns_had[index] += 1


class _Cached:
    """Gives access by index to the items of an endless iterator."""

    def __init__(self, iterator: Iterator[tuple[str, int]]):
        self.items: list[tuple[str, int]] = []
        self.iterator = iterator

    def __getitem__(self, i: int) -> tuple[str, int]:
        self.items.extend(islice(self.iterator, max(0, i + 1 - len(self.items))))
        return self.items[i]
