"""The answers of a stage to test rows, as they are kept in its folder."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from perdure.measure.compressed import read_compressed, write_compressed


@dataclass
class Predictions:
    """A model's answers to the test rows of a task, in the order of the rows.

    Args:
        answers: the text of each answer.
        scores: the score of each answer, 0 to 1.
    """

    answers: list[str]
    scores: list[float]

    def __post_init__(self):
        if len(self.answers) != len(self.scores):
            raise ValueError(f"{len(self.answers)} answers have {len(self.scores)} scores")


class _Answers(TypedDict):
    answers: list[str]
    scores: list[float]


class Stored(TypedDict):
    """The content of a file of predictions."""

    before: dict[str, _Answers]
    after: dict[str, _Answers]


def write_predictions(file: Path, predictions: Mapping[str, Mapping[str, Predictions]]) -> None:
    """Write answers and their scores, by `before` or `after` and by task, as compressed JSON."""
    plain = {
        when: {name: asdict(answers) for name, answers in by_task.items() if answers.answers}
        for when, by_task in predictions.items()
    }
    write_compressed(file, plain)


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
