"""The answers of a stage to test rows, as they are kept in its folder."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from perdure.measure.compressed import read_compressed, write_compressed


@dataclass
class Predictions:
    """A model's answers to the test rows of a task, in the order of the rows.

    Args:
        answers: the text of each answer.
        scores: the score of each answer, 0 to 1.
        rows: the indices of the test rows if only a sample of them was asked, in order.
        of: the number of the task's test rows if only a sample of them was asked.
    """

    answers: list[str]
    scores: list[float]
    rows: list[int] | None = None
    of: int | None = None

    def __post_init__(self):
        if len(self.answers) != len(self.scores):
            raise ValueError(f"{len(self.answers)} answers have {len(self.scores)} scores")
        if (self.rows is None) != (self.of is None):
            raise ValueError("a sample needs the indices of its rows and the number of all rows")
        if self.rows is not None:
            ascending = all(a < b for a, b in pairwise([-1, *self.rows, self.count]))
            if len(self.rows) != len(self.answers) or not ascending:
                raise ValueError("the rows of a sample are not some of the task's test rows")

    @property
    def count(self) -> int:
        """The number of the task's test rows, asked or not."""
        return len(self.answers) if self.of is None else self.of

    def row(self, index: int) -> int:
        """Return the index among the task's test rows of the row of an answer."""
        return index if self.rows is None else self.rows[index]


def on_common_rows(one: Predictions, other: Predictions) -> tuple[Predictions, Predictions] | None:
    """Return two stages' answers to the test rows that both asked, None if there are none."""
    if one.count != other.count:
        return None
    if one.rows == other.rows:
        return (one, other) if one.answers else None
    places, others = (
        {predictions.row(i): i for i in range(len(predictions.answers))}
        for predictions in (one, other)
    )
    rows = [row for row in places if row in others]
    if not rows:
        return None
    return _part(one, rows, places), _part(other, rows, others)


def _part(predictions: Predictions, rows: list[int], places: Mapping[int, int]) -> Predictions:
    """Return the answers to some rows, given the place of each row among the answers."""
    return Predictions(
        answers=[predictions.answers[places[row]] for row in rows],
        scores=[predictions.scores[places[row]] for row in rows],
        rows=rows,
        of=predictions.count,
    )


class _Answers(TypedDict):
    answers: list[str]
    scores: list[float]
    rows: NotRequired[list[int]]
    of: NotRequired[int]


class Stored(TypedDict):
    """The content of a file of predictions."""

    before: dict[str, _Answers]
    after: dict[str, _Answers]


def write_predictions(file: Path, predictions: Mapping[str, Mapping[str, Predictions]]) -> None:
    """Write answers and their scores, by `before` or `after` and by task, as compressed JSON."""
    plain = {
        when: {name: _plain(answers) for name, answers in by_task.items() if answers.answers}
        for when, by_task in predictions.items()
    }
    write_compressed(file, plain)


def _plain(predictions: Predictions) -> dict[str, Any]:
    return {key: value for key, value in asdict(predictions).items() if value is not None}


def read_predictions(file: Path) -> dict[str, dict[str, Predictions]]:
    """Read what `write_predictions` wrote; a stage without the file has no predictions.

    Raises:
        PerdureError: the file is damaged.
    """
    if not file.is_file():
        return {"before": {}, "after": {}}
    return read_compressed(file, Stored, _predictions)


def _predictions(plain: Any) -> dict[str, dict[str, Predictions]]:
    return {
        when: {
            name: Predictions(**answers)
            for name, answers in plain[when].items()
            if answers["answers"]
        }
        for when in ("before", "after")
    }
