"""The score matrix R, and everything reported about forgetting as a pure function of it.

R[i, j] is the score of task j after stage i; row 0 is the untouched base. An unknown cell is None,
and a number that needs an unknown cell, or that is a mean over nothing, is None as well: never a
guess. Means are exact and rounded once, so the order of the tasks cannot change them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean
from typing import Any

from engram.errors import EngramError


@dataclass(frozen=True)
class ScoreMatrix:
    """R[stage, task] with, for each task, the stage (>= 1) that learned it.

    A stage may learn no task (a merge, an edit) and then just adds a row. Raises EngramError when
    a row has not one cell a task, or a task was learned at no stage of the matrix.
    """

    tasks: tuple[str, ...]
    learned_at: tuple[int, ...]
    rows: tuple[tuple[float | None, ...], ...]

    def __post_init__(self):
        if not self.rows:
            raise EngramError("a score matrix needs row 0, the scores of the base; got no rows")
        for i, row in enumerate(self.rows):
            if len(row) != len(self.tasks):
                raise EngramError(
                    f"row {i} of the score matrix has {len(row)} cells for {len(self.tasks)} tasks"
                )
        if len(self.learned_at) != len(self.tasks):
            raise EngramError(
                f"learned_at has {len(self.learned_at)} entries for {len(self.tasks)} tasks"
            )
        for task, stage in zip(self.tasks, self.learned_at, strict=True):
            if not 1 <= stage <= self.last:
                raise EngramError(
                    f"task {task!r} is said to be learned at stage {stage}, "
                    f"but the score matrix has stages 1 to {self.last}"
                )

    @property
    def last(self) -> int:
        """The last stage's index; 0 when there is only the base."""
        return len(self.rows) - 1


def overall(matrix: ScoreMatrix) -> float | None:
    """OP, overall performance: the mean over tasks of R[last, j]."""
    return _mean(matrix.rows[-1])


def backward_transfer(matrix: ScoreMatrix) -> float | None:
    """BWT: the mean over tasks learned before the last stage of R[last, j] - R[learned_at_j, j].

    Negative when earlier tasks were forgotten. Lopez-Paz & Ranzato 2017,
    https://huggingface.co/papers/1706.08840
    """
    return _mean(
        _minus(matrix.rows[-1][j], matrix.rows[stage][j]) for j, stage in _earlier_tasks(matrix)
    )


def forward_transfer(matrix: ScoreMatrix) -> float | None:
    """FWT: the mean over tasks with learned_at_j > 1 of R[learned_at_j - 1, j] - R[0, j].

    What earlier tasks gave a task before it was learned. The task of stage 1 is left out: nothing
    was learned before it, its difference is 0 by definition. Lopez-Paz & Ranzato 2017 with the
    untouched base as their random baseline.
    """
    return _mean(
        _minus(matrix.rows[stage - 1][j], matrix.rows[0][j])
        for j, stage in enumerate(matrix.learned_at)
        if stage > 1
    )


def forgetting(matrix: ScoreMatrix) -> float | None:
    """The mean over tasks learned before the last stage of max_i R[i, j] - R[last, j].

    i runs from learned_at_j to last - 1, so at least -BWT. Chaudhry et al. 2018 (RWalk),
    https://huggingface.co/papers/1801.10112; their max starts at stage 1, ours where the task was
    learned, because a score from before that is transfer, not something learned and then lost.
    """
    return _mean(
        _minus(_max(row[j] for row in matrix.rows[stage:-1]), matrix.rows[-1][j])
        for j, stage in _earlier_tasks(matrix)
    )


def learning_accuracy(matrix: ScoreMatrix) -> float | None:
    """Plasticity: the mean over tasks of R[learned_at_j, j], the score right after learning."""
    return _mean(matrix.rows[stage][j] for j, stage in enumerate(matrix.learned_at))


def summary(matrix: ScoreMatrix) -> dict[str, float | None]:
    """Every number of this page by its name, as results and ledgers store them."""
    return {
        "overall": overall(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(matrix),
        "forgetting": forgetting(matrix),
        "learning_accuracy": learning_accuracy(matrix),
    }


def to_dict(matrix: ScoreMatrix) -> dict[str, Any]:
    """The matrix as plain lists, ready for JSON (None becomes null)."""
    return {
        "tasks": list(matrix.tasks),
        "learned_at": list(matrix.learned_at),
        "rows": [list(row) for row in matrix.rows],
    }


def from_dict(plain: dict[str, Any]) -> ScoreMatrix:
    """The matrix that `to_dict` wrote."""
    return ScoreMatrix(
        tasks=tuple(plain["tasks"]),
        learned_at=tuple(plain["learned_at"]),
        rows=tuple(tuple(row) for row in plain["rows"]),
    )


def _earlier_tasks(matrix: ScoreMatrix) -> list[tuple[int, int]]:
    """(column, stage learned at) of the tasks that a later stage had the chance to damage."""
    return [(j, stage) for j, stage in enumerate(matrix.learned_at) if stage < matrix.last]


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _max(cells: Iterable[float | None]) -> float | None:
    known = list(cells)
    return None if None in known else max(cell for cell in known if cell is not None)


def _mean(cells: Iterable[float | None]) -> float | None:
    known = list(cells)
    if not known or None in known:
        return None
    return float(mean(cell for cell in known if cell is not None))
