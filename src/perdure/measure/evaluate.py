"""Scoring a model on a task: the mean score of its answers to the test rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from perdure.config import ScoringMode
from perdure.data.rows import references
from perdure.data.task import Task
from perdure.errors import PerdureError
from perdure.measure.metrics import EXACT, best, find_metric
from perdure.measure.predict import (
    MAX_COMPLETION_LENGTH,
    MAX_LENGTH,
    Questions,
    check_mode,
    correct_answers,
    predict,
    predict_together,
)
from perdure.measure.predictions import Predictions
from perdure.models.base import Base
from perdure.models.kinds import Kind


@dataclass
class Cell:
    """One cell of the score matrix R.

    Args:
        score: the mean score, None if the model cannot give any of the answers yet.
        metric: the name of the metric.
        mode: how the model answered.
        rows: the number of test rows.
        truncated: the number of rows whose prompt was cut to `max_length`.
    """

    score: float | None
    metric: str
    mode: ScoringMode
    rows: int
    truncated: int


def evaluate(
    base: Base,
    task: Task,
    mode: ScoringMode | None = None,
    batch_size: int = 32,
    max_length: int = MAX_LENGTH,
    max_completion_length: int = MAX_COMPLETION_LENGTH,
) -> tuple[Cell, Predictions]:
    """Score the model on the test rows of a task.

    Returns:
        The cell, and the model's answers with their scores. If the head of an encoder has none of
        the task's options, the score is None and there are no answers.

    Raises:
        PerdureError: as in `scoring_mode` and `predict`.
    """
    mode = scoring_mode(base.kind, task, mode)
    assert task.test is not None
    answers, truncated = predict(
        base,
        task.test.rows,
        mode=mode,
        options=task.answers(),
        max_length=max_length,
        max_completion_length=max_completion_length,
        batch_size=batch_size,
        where=f"{task.name} test",
        exact=task.metric in EXACT,
    )
    return _scored(base, task, mode, answers, truncated)


def evaluate_together(
    base: Base,
    tasks: Mapping[str, Task],
    mode: ScoringMode | None,
    batch_size: int,
    max_length: int,
    max_completion_length: int,
) -> dict[str, tuple[Cell, Predictions]]:
    """Return what `evaluate` returns for each of several tasks with few test rows.

    In mode `generate`, rows of several tasks share a batch.
    """
    lengths = {"max_length": max_length, "max_completion_length": max_completion_length}
    modes: dict[str, ScoringMode] = {
        name: scoring_mode(base.kind, task, mode) for name, task in tasks.items()
    }
    writing = [name for name in tasks if modes[name] == "generate"]
    questions = [
        Questions(task.test.rows, f"{task.name} test", task.metric in EXACT)
        for task in (tasks[name] for name in writing)
        if task.test is not None
    ]
    generated = predict_together(base, questions, batch_size=batch_size, **lengths)
    results = {
        name: _scored(base, tasks[name], "generate", answers, truncated)
        for name, (answers, truncated) in zip(writing, generated, strict=True)
    }
    return {
        name: results[name]
        if name in results
        else evaluate(base, task, modes[name], batch_size, **lengths)
        for name, task in tasks.items()
    }


def _scored(
    base: Base, task: Task, mode: ScoringMode, answers: list[str], truncated: int
) -> tuple[Cell, Predictions]:
    """Score the answers to a task's test rows."""
    assert task.test is not None
    scores, metric = [], find_metric(task.metric)
    if answers:
        if mode == "generate":
            correct = correct_answers(base, task.test.rows, f"{task.name} test")
        else:  # the options are whole answers
            correct = [references(row) for row in task.test.rows]
        pairs = zip(answers, correct, strict=True)
        scores = [best(metric, answer, texts) for answer, texts in pairs]
    cell = Cell(
        score=fmean(scores) if scores else None,
        metric=task.metric,
        mode=mode,
        rows=len(task.test.rows),
        truncated=truncated,
    )
    return cell, Predictions(answers, scores)


def scoring_mode(kind: Kind, task: Task, mode: ScoringMode | None = None) -> ScoringMode:
    """Return the mode in which a task is scored: `mode`, or the default for the kind of model.

    The default is `options` for encoders and `generate` for others. No model is needed, so a task
    that cannot be scored is refused before anything is trained.

    Raises:
        PerdureError: the task has no test rows, the metric is unknown, or the kind of model or the
            task does not allow the mode.
    """
    if task.test is None or not task.test.rows:
        raise PerdureError(f"task {task.name!r} has no test rows to score; give it a test file")
    find_metric(task.metric)
    mode = mode or ("options" if kind == "encoder" else "generate")
    check_mode(
        kind,
        task.test.rows,
        mode=mode,
        options=task.answers(),
        where=f"{task.name} test",
    )
    return mode
