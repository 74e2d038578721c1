"""Sample answers: a few test rows of each task, with what the model answered to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from perdure.data.rows import Row, references
from perdure.errors import PerdureError
from perdure.lineage.answers import first_answers, newest_answers
from perdure.lineage.history import learned_by
from perdure.lineage.lineage import Lineage
from perdure.lineage.sources import reopen
from perdure.measure.predictions import Predictions, on_common_rows
from perdure.say import silent


ROWS = 3  # sample rows of each task
LONGEST = 400  # characters of a text; the middle of a longer one is left out


@dataclass(frozen=True)
class Sample:
    """A test row and its answers.

    Args:
        row: the number of the row among the test rows, from 1.
        prompt: the question, None if the rows cannot be read.
        expected: the first correct answer, None if the rows cannot be read.
        first: the answer right after the task was learned.
        first_score: its score.
        newest: the answer at the newest stage that was scored on the task.
        newest_score: its score.
    """

    row: int
    prompt: str | None
    expected: str | None
    first: str
    first_score: float
    newest: str
    newest_score: float

    @property
    def fell(self) -> bool:
        return self.newest_score < self.first_score


@dataclass(frozen=True)
class TaskSamples:
    """The samples of a task, and the number of its test rows.

    Args:
        task: the name of the task.
        test_rows: the number of its test rows that were asked.
        score: the mean of their scores at the newest stage that was scored on them.
        fell: how many of them score less than right after the task was learned.
        samples: the rows that fell first, then the others, in the order of the rows.
        missing: why the samples have no prompts, empty if they have.
    """

    task: str
    test_rows: int
    score: float
    fell: int
    samples: tuple[Sample, ...]
    missing: str = ""


def sample_answers(lineage: Lineage) -> tuple[TaskSamples, ...]:
    """Return sample answers to each task of the active stages that stored any.

    The test rows are read again from their files. Rows on the hub are not, as a report asks for
    nothing over the network.
    """
    stages = lineage.stages
    first, newest = first_answers(lineage, stages), newest_answers(lineage, stages)
    described = {task["id"]: task for entry in lineage.standing for task in learned_by(entry)}
    return tuple(
        _task_samples(lineage, described[name], first[name], newest[name])
        for name in described
        if name in newest
    )


def _task_samples(
    lineage: Lineage, described: Mapping[str, Any], first: Predictions, newest: Predictions
) -> TaskSamples:
    rows, missing = _test_rows(lineage, described)
    first, newest = on_common_rows(first, newest) or (newest, newest)
    count = newest.count
    if rows is not None and len(rows) != count:
        rows, missing = None, "the number of its test rows has changed"
    samples = [
        Sample(
            row=newest.row(i) + 1,
            prompt=shortened(prompt_of(rows[newest.row(i)])) if rows else None,
            expected=shortened(references(rows[newest.row(i)])[0].strip()) if rows else None,
            first=shortened(first.answers[i].strip()),
            first_score=first.scores[i],
            newest=shortened(newest.answers[i].strip()),
            newest_score=newest.scores[i],
        )
        for i in _chosen(first.scores, newest.scores)
    ]
    fell = sum(b < a for a, b in zip(first.scores, newest.scores, strict=True))
    return TaskSamples(
        task=described["id"],
        test_rows=len(newest.answers),
        score=fmean(newest.scores),
        fell=fell,
        samples=tuple(samples),
        missing=missing,
    )


def _chosen(first: Sequence[float], newest: Sequence[float]) -> list[int]:
    """Return the indices of the sample rows: those that fell first, then the others."""
    indices = range(len(newest))
    return sorted(indices, key=lambda i: newest[i] >= first[i])[:ROWS]


def _test_rows(lineage: Lineage, described: Mapping[str, Any]) -> tuple[Sequence[Row] | None, str]:
    """Return a task's test rows; or None, and why they cannot be read."""
    source = (described.get("test") or {}).get("source")
    if not source:
        return None, "its test rows were passed in Python"
    if "hub" in source or source.get("from") == "hub":
        return None, "its test rows are on the hub, which the report does not ask"
    try:
        task = reopen(lineage, dict(described), None, silent)
    except PerdureError:
        task = None
    if task is None or task.test is None:
        return None, "its test rows are gone or have changed"
    return task.test.rows, ""


def prompt_of(row: Row) -> str:
    """Return the question of a row as text: its prompt, or the messages before the answer."""
    if "text" in row:
        return row["text"]
    if isinstance(row.get("prompt"), str):
        return row["prompt"].strip()
    messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    lines = [f"{message['role']}: {message.get('content', '')}" for message in messages[:-1]]
    return "\n".join(lines)


def shortened(text: str) -> str:
    """Return a text without its middle if it is longer than `LONGEST` characters."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half].rstrip()} […] {text[-half:].lstrip()}"
