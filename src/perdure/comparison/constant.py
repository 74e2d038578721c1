"""The line `constant` of a comparison: the score that any method should exceed."""

from collections import Counter
from statistics import fmean
from typing import Any

from perdure.comparison.cell import Cell
from perdure.data.rows import answer, references
from perdure.data.stream import load_stream
from perdure.data.task import Task
from perdure.errors import PerdureError
from perdure.measure.matrix import ScoreMatrix, summary, to_dict
from perdure.measure.metrics import best, find_metric


def most_common_answer(task: Task) -> str:
    """The most common answer of the training rows; of equally common ones, the first.

    Raises:
        PerdureError: the rows are plain text, which has no answer.
    """
    if any("text" in row for row in task.train.rows):
        raise PerdureError(
            f"task {task.name!r}: its rows are plain text, for which there is no constant answer; "
            "remove constant from the grid"
        )
    [(most_common, _)] = Counter(answer(row) for row in task.train.rows).most_common(1)
    return most_common


def check_answers(cell: Cell) -> None:
    """Raise PerdureError if a task has no answers; test rows are not read."""
    for task in load_stream(cell.config, ["train"]):
        most_common_answer(task)


def constant_record(cell: Cell) -> dict[str, Any]:
    """The record of a cell that gives each task's most common answer to all of its test rows.

    It has the form of a run's record. Only OP is known, because nothing is learned.
    """
    tasks = load_stream(cell.config)
    scores = tuple(_score(task) for task in tasks)
    names = tuple(task.name for task in tasks)
    unknown = (None,) * len(tasks)  # the scores of the base
    matrix = ScoreMatrix(names, (1,) * len(tasks), (unknown, scores))
    numbers = summary(matrix)
    return {
        **dict.fromkeys(numbers),
        "overall": numbers["overall"],
        "matrix": to_dict(matrix),
        "mode": ["constant"],
        "metric": sorted({task.metric for task in tasks}),
        "rows": {"forward": 0, "backward": 0},
        **dict.fromkeys(("steps", "trainable", "stored_rows", "stored_bytes"), 0),
        **dict.fromkeys(("lost_tasks", "general")),
        "varying": dict.fromkeys(
            ("seconds", "seconds_scoring", "cpu_seconds", "peak_memory_bytes"), 0
        ),
    }


def _score(task: Task) -> float | None:
    if task.test is None:
        return None
    constant_answer, metric = most_common_answer(task), find_metric(task.metric)
    return fmean(best(metric, constant_answer, references(row)) for row in task.test.rows)
