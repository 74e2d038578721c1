"""The score matrix as a table for the terminal."""

from rich.table import Table
from rich.text import Text

from engram.measure.matrix import ScoreMatrix


def table(matrix: ScoreMatrix, mode: str, metric: str, title: str | None = None) -> Table:
    """One line a stage, one column a task; the score right after learning is bold, unknown is '-'.

    Scores mean nothing without how they were taken, so mode and metric stand under the table.
    """
    caption = Text(f"mode: {mode}\nmetric: {metric}")
    shown = Table(title=title, caption=caption, caption_justify="left")
    shown.add_column("after stage", no_wrap=True)
    for task in matrix.tasks:
        shown.add_column(Text(task), justify="right")
    for stage, row in enumerate(matrix.rows):
        cells = [
            Text(cell(score), style="bold" if learned_at == stage else "")
            for score, learned_at in zip(row, matrix.learned_at, strict=True)
        ]
        shown.add_row(Text(_stage_name(matrix, stage)), *cells)
    return shown


def cell(score: float | None) -> str:
    """A score with three decimals, '-' when it is unknown."""
    return "-" if score is None else f"{score:.3f}"


def _stage_name(matrix: ScoreMatrix, stage: int) -> str:
    if stage == 0:
        return "base"
    learned = [t for t, at in zip(matrix.tasks, matrix.learned_at, strict=True) if at == stage]
    return " ".join([str(stage), *learned])
