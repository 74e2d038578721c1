"""The score matrix R, and the metrics of forgetting and transfer as pure functions of it.

R[i, j] is the score of task j after stage i. Row 0 is the untouched base. An unknown cell is None.
A metric that needs an unknown cell, or that is a mean over nothing, is None as well and never an
estimate. Means are exact and rounded once, so they do not depend on the order of the tasks.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from perdure.errors import PerdureError


@dataclass(frozen=True)
class ScoreMatrix:
    """The scores R[stage, task], and for each task the stage that learned it.

    A stage that learned no task, such as a merge or an edit, only adds a row.

    Args:
        tasks: the names of the tasks, one for each column.
        learned_at: for each task the stage that learned it, at least 1.
        rows: [stages + 1, tasks], the scores; row 0 is the base.
        numbers: the numbers of the stages of rows 1, 2, ... in their lineage, which is some way
            ahead of the rows after a revert; None if they are those of the rows. They only name
            the rows: everything else here counts rows.

    Raises:
        PerdureError: there are no rows, a row does not have one cell for each task, or a task was
            learned at a stage that the matrix does not have.
    """

    tasks: tuple[str, ...]
    learned_at: tuple[int, ...]
    rows: tuple[tuple[float | None, ...], ...]
    numbers: tuple[int, ...] | None = field(default=None, compare=False)

    def __post_init__(self):
        if not self.rows:
            raise PerdureError("a score matrix needs row 0, the scores of the base; got no rows")
        for i, row in enumerate(self.rows):
            if len(row) != len(self.tasks):
                raise PerdureError(
                    f"row {i} of the score matrix has {len(row)} cells for {len(self.tasks)} tasks"
                )
        if len(self.learned_at) != len(self.tasks):
            raise PerdureError(
                f"learned_at has {len(self.learned_at)} entries for {len(self.tasks)} tasks"
            )
        for task, stage in zip(self.tasks, self.learned_at, strict=True):
            if not 1 <= stage <= self.last:
                raise PerdureError(
                    f"task {task!r} was learned at stage {stage}, "
                    f"but the score matrix has stages 1 to {self.last}"
                )

    @property
    def last(self) -> int:
        """The index of the last stage, 0 if there is only the base."""
        return len(self.rows) - 1

    def number(self, row: int) -> int:
        """Return the number of the stage of a row; that of the base is 0."""
        return row if self.numbers is None or row == 0 else self.numbers[row - 1]

    def row_name(self, row: int) -> str:
        """Return the name of a row: `base`, or the stage's number and the tasks that it learned."""
        if row == 0:
            return "base"
        pairs = zip(self.tasks, self.learned_at, strict=True)
        return " ".join([str(self.number(row)), *(task for task, stage in pairs if stage == row)])


def overall(matrix: ScoreMatrix) -> float | None:
    """Return OP, the overall performance: the mean over tasks of R[last, j]."""
    return _mean(matrix.rows[-1])


def backward_transfer(matrix: ScoreMatrix) -> float | None:
    """Return BWT, the backward transfer: the mean of R[last, j] - R[learned_at_j, j].

    The mean is over the tasks learned before the last stage. It is negative if earlier tasks were
    forgotten. Lopez-Paz & Ranzato 2017, https://huggingface.co/papers/1706.08840
    """
    return _mean(
        _minus(matrix.rows[-1][j], matrix.rows[stage][j]) for j, stage in _earlier_tasks(matrix)
    )


def forward_transfer(matrix: ScoreMatrix) -> float | None:
    """Return FWT, the forward transfer: the mean of R[learned_at_j - 1, j] - R[0, j].

    This is how much the tasks learned earlier improved a task before it was learned. The mean is
    over the tasks with learned_at_j > 1; for the first task the difference would be 0 by
    definition. Lopez-Paz & Ranzato 2017, with the untouched base in place of their random baseline.
    """
    return _mean(
        _minus(matrix.rows[stage - 1][j], matrix.rows[0][j])
        for j, stage in enumerate(matrix.learned_at)
        if stage > 1
    )


def forgetting(matrix: ScoreMatrix) -> float | None:
    """Return the forgetting: the mean of max_i R[i, j] - R[last, j].

    The mean is over the tasks learned before the last stage, and i runs from learned_at_j to
    last - 1, so the result is at least -BWT. Chaudhry et al. 2018 (RWalk),
    https://huggingface.co/papers/1801.10112. Their maximum starts at stage 1. Ours starts where the
    task was learned, because a score before that is transfer, and not something that was learned.
    """
    return _mean(
        _minus(_max(row[j] for row in matrix.rows[stage:-1]), matrix.rows[-1][j])
        for j, stage in _earlier_tasks(matrix)
    )


def learning_accuracy(matrix: ScoreMatrix) -> float | None:
    """Return the plasticity: the mean of R[learned_at_j, j], the scores right after learning."""
    return _mean(matrix.rows[stage][j] for j, stage in enumerate(matrix.learned_at))


def summary(matrix: ScoreMatrix) -> dict[str, float | None]:
    """Return all metrics of this module by name, as results and ledgers store them."""
    return {
        "overall": overall(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(matrix),
        "forgetting": forgetting(matrix),
        "learning_accuracy": learning_accuracy(matrix),
    }


def to_dict(matrix: ScoreMatrix) -> dict[str, Any]:
    """Return the matrix as plain lists for JSON (None becomes null)."""
    return {
        "tasks": list(matrix.tasks),
        "learned_at": list(matrix.learned_at),
        "rows": [list(row) for row in matrix.rows],
    }


def from_dict(plain: dict[str, Any]) -> ScoreMatrix:
    """Return the matrix that `to_dict` converted."""
    return ScoreMatrix(
        tasks=tuple(plain["tasks"]),
        learned_at=tuple(plain["learned_at"]),
        rows=tuple(tuple(row) for row in plain["rows"]),
    )


def _earlier_tasks(matrix: ScoreMatrix) -> list[tuple[int, int]]:
    """Return (column, stage that learned it) of each task learned before the last stage."""
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
