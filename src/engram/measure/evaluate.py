"""A model on a task: answer every test row, score each answer, take the mean."""

from dataclasses import dataclass
from statistics import fmean

from engram.data.rows import references
from engram.data.task import Task
from engram.errors import EngramError
from engram.measure.metrics import EXACT, best, find_metric
from engram.measure.predict import (
    MAX_COMPLETION_LENGTH,
    MAX_LENGTH,
    Mode,
    check_mode,
    predict,
)
from engram.models.base import Base, Kind


@dataclass
class Cell:
    """One cell of R: the mean score over `rows` test rows, None when it cannot be known yet.

    `truncated` counts the rows whose prompt lost its middle to `max_length`.
    """

    score: float | None
    metric: str
    mode: Mode
    rows: int
    truncated: int


def evaluate(
    base: Base,
    task: Task,
    mode: Mode | None = None,
    batch_size: int = 32,
    max_length: int = MAX_LENGTH,
    max_completion_length: int = MAX_COMPLETION_LENGTH,
) -> tuple[Cell, list[str]]:
    """Score the model on the task's test rows; also returns what it answered, in row order.

    The score is None, and there are no answers, when the head of an encoder knows none of the
    task's options. Raises what `scoring_mode` and `predict` raise.
    """
    mode = scoring_mode(base.kind, task, mode)
    assert task.test is not None
    predictions, truncated = predict(
        base,
        task.test.rows,
        mode,
        task.answers(),
        max_length,
        max_completion_length,
        batch_size,
        where=f"{task.name} test",
        exact=task.metric in EXACT,
    )
    score, metric = None, find_metric(task.metric)
    if predictions:
        pairs = zip(predictions, task.test.rows, strict=True)
        score = fmean(best(metric, said, references(row)) for said, row in pairs)
    return Cell(score, task.metric, mode, len(task.test.rows), truncated), predictions


def scoring_mode(kind: Kind, task: Task, mode: Mode | None = None) -> Mode:
    """The mode in which the task is scored: `options` for encoders, else `generate`, unless given.

    It needs no model, so what cannot be scored is found before anything is trained.

    Raises:
        EngramError: no test rows, an unknown metric, or a mode that this kind of model or this task
            does not allow.
    """
    if task.test is None or not task.test.rows:
        raise EngramError(f"task {task.name!r} has no test rows to score; give it a test file")
    find_metric(task.metric)
    mode = mode or ("options" if kind == "encoder" else "generate")
    check_mode(kind, task.test.rows, mode, task.answers(), f"{task.name} test")
    return mode
