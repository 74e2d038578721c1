"""A task: a name, its rows in up to three splits, and how its answers are scored."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from engram.data.rows import Row, answer, hash_rows
from engram.errors import EngramError


T = TypeVar("T")
MOST_ANSWERS = 50  # more distinct answers than this are no list of options
ROWS_AN_ANSWER = 5  # on average, or answers that nobody declared are taken for free text


def answers_are_closed(rows: Sequence[Row], options: Sequence[str] | None) -> bool:
    """Whether rows choose among answers: declared ones, or few and each for several rows.

    Few are at most 50 distinct answers, and no more than a fifth of the rows.
    """
    if options is not None:
        return True
    if any("text" in row for row in rows):
        return False
    distinct = len({answer(row).strip() for row in rows})
    return distinct <= MOST_ANSWERS and distinct * ROWS_AN_ANSWER <= len(rows)


@dataclass(frozen=True)
class Split:
    """Rows, and the recipe that makes the same rows again.

    `source` is one of (None for rows made in Python):

        {"path": "train.jsonl", "limit": None, "seed": 0}
        {"hub": "nyu-mll/glue", "config": "sst2", "split": "train", "revision": ..., ...}
        {"benchmark": "dbpedia", "split": "test", "limit": 500, "seed": 0, "instruction": True}
        {"stream": "generated", "task": ..., "split": ..., "limit": 500, "seed": 0}

    `limit` and `seed` are in each. The first two have `prompt`, `completion` and `labels` too if
    templates make the rows. A benchmark's has `"from": "hub"` and the `revision` if its rows came
    from there, and neither if they came from a folder.

    `numbers` are those of the rows in their file or dataset, if they come from one, and `notes`
    lines about how it was read.
    """

    rows: tuple[Row, ...]
    source: dict[str, Any] | None = None
    numbers: tuple[int, ...] = field(default=(), compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def sha256(self) -> str:
        return hash_rows(self.rows)

    def number(self, index: int) -> int:
        """The number by which a user finds a row again: in its file, else in the split, from 1."""
        return self.numbers[index] if self.numbers else index + 1

    def place(self, index: int) -> str:
        """Where a row stands, for a line about it."""
        source = self.source or {}
        name = source.get("path") or source.get("hub")
        return f"{name}, row {self.number(index)}" if name else f"row {self.number(index)}"


@dataclass(frozen=True)
class Task:
    """`training` is laid over the run's own for this task."""

    name: str
    train: Split
    dev: Split | None = None
    test: Split | None = None
    metric: str = "exact_match"
    options: tuple[str, ...] | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def answers(self) -> tuple[str, ...] | None:
        """What can be answered: the declared options, else the sorted distinct training answers.

        None when these are more than 50: the task is not a choice. `{"text"}` rows have no answer.
        """
        if self.options is not None:
            return self.options
        if any("text" in row for row in self.train.rows):
            return None
        distinct = {answer(row).strip() for row in self.train.rows}
        return tuple(sorted(distinct)) if len(distinct) <= MOST_ANSWERS else None


def limit_rows(rows: Sequence[T], limit: int | None, seed: int) -> Sequence[T]:
    """`limit` rows (or numbers of rows) drawn without replacement, in their old order.

    All if there are no more.
    """
    if limit is None or limit >= len(rows):
        return rows
    if limit < 1:
        raise EngramError(
            f"a limit of rows must be at least 1, got {limit}; leave it out for all rows"
        )
    chosen = random.Random(seed).sample(range(len(rows)), limit)
    return [rows[i] for i in sorted(chosen)]
