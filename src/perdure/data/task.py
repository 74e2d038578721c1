"""A task: its name, its rows in up to three splits, and how its answers are scored."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from perdure.data.rows import Row, answer, hash_rows
from perdure.errors import PerdureError


T = TypeVar("T")
MOST_ANSWERS = 50  # with more distinct answers than this, a task is not a choice among options
ROWS_AN_ANSWER = 5  # mean rows per distinct answer; with fewer, undeclared answers are free text


def answers_are_closed(rows: Sequence[Row], options: Sequence[str] | None) -> bool:
    """Return whether the rows choose among a closed set of answers.

    They do if `options` are declared, or if there are at most 50 distinct answers and at least five
    times as many rows.
    """
    if options is not None:
        return True
    if any("text" in row for row in rows):
        return False
    distinct = len({answer(row).strip() for row in rows})
    return distinct <= MOST_ANSWERS and distinct * ROWS_AN_ANSWER <= len(rows)


@dataclass(frozen=True)
class Split:
    """Rows, and the source from which the same rows can be read again.

    `source` is None for rows that were made in Python, otherwise one of:

        {"path": "train.jsonl", "limit": None, "seed": 0}
        {"hub": "nyu-mll/glue", "config": "sst2", "split": "train", "revision": ..., ...}
        {"benchmark": "dbpedia", "split": "test", "limit": 500, "seed": 0, "instruction": True}
        {"stream": "generated", "task": ..., "split": ..., "limit": 500, "seed": 0}

    Each has `limit` and `seed`. The first two also have `prompt`, `completion` and `labels` if the
    rows are made by templates. The source of a benchmark has `"from": "hub"` and the `revision` if
    its rows came from the hub, and neither if they came from a folder.

    `numbers` are the rows' numbers in their file or dataset, counted from 1, if they have one.
    `notes` are lines about how the file was read.
    """

    rows: tuple[Row, ...]
    source: dict[str, Any] | None = None
    numbers: tuple[int, ...] = field(default=(), compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def sha256(self) -> str:
        return hash_rows(self.rows)

    def number(self, index: int) -> int:
        """Return the number of a row, from 1: in its file if it has one, else in the split."""
        return self.numbers[index] if self.numbers else index + 1

    def place(self, index: int) -> str:
        """Return a row's file or dataset and its number, for a message about it."""
        source = self.source or {}
        name = source.get("path") or source.get("hub")
        return f"{name}, row {self.number(index)}" if name else f"row {self.number(index)}"


@dataclass(frozen=True)
class Task:
    """A task of a stream.

    Args:
        name: the name, which is also that of the stage's folder.
        train: the rows to learn.
        dev: rows held out for choices, such as of hyper-parameters.
        test: rows on which the model is scored.
        metric: the name of the metric.
        options: all answers that the task allows, if it is a choice among them.
        training: settings that override the run's own `training` for this task.
    """

    name: str
    train: Split
    dev: Split | None = None
    test: Split | None = None
    metric: str = "exact_match"
    options: tuple[str, ...] | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.options is not None:  # as answers are compared: without white space around them
            object.__setattr__(self, "options", tuple(option.strip() for option in self.options))

    def answers(self) -> tuple[str, ...] | None:
        """Return the possible answers: the options, or else the distinct training answers, sorted.

        Returns None if there are more than 50 of them, or if the rows are texts without an answer.
        """
        if self.options is not None:
            return self.options
        if any("text" in row for row in self.train.rows):
            return None
        distinct = {answer(row).strip() for row in self.train.rows}
        return tuple(sorted(distinct)) if len(distinct) <= MOST_ANSWERS else None


def limit_rows(rows: Sequence[T], limit: int | None, seed: int) -> Sequence[T]:
    """Draw `limit` rows (or numbers of rows) without replacement, and keep their order.

    Returns all rows if `limit` is None or not less than their number.

    Raises:
        PerdureError: `limit` is less than 1.
    """
    if limit is None or limit >= len(rows):
        return rows
    if limit < 1:
        raise PerdureError(
            f"a limit of rows must be at least 1, got {limit}; leave it out for all rows"
        )
    chosen = random.Random(seed).sample(range(len(rows)), limit)
    return [rows[i] for i in sorted(chosen)]
