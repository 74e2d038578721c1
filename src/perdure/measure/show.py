"""The score matrix as a table for the terminal."""

from collections.abc import Collection

from rich.table import Table
from rich.text import Text

from perdure.measure.matrix import ScoreMatrix


def table(
    matrix: ScoreMatrix,
    mode: str,
    metric: str,
    title: str | None = None,
    sampled: Collection[tuple[int, str]] = (),
) -> Table:
    """Return a table with one line per stage and one column per task.

    The scores right after learning are bold, and unknown scores are '-'. Scores cannot be compared
    without mode and metric, so these stand under the table. The cells (row, task) of `sampled` have
    a `~`.
    """
    note = "\n~ estimated from a sample of the test rows" if sampled else ""
    caption = Text(f"mode: {mode}\nmetric: {metric}{note}")
    score_table = Table(title=title, caption=caption, caption_justify="left")
    score_table.add_column("after stage", no_wrap=True)
    for task in matrix.tasks:
        score_table.add_column(Text(task), justify="right")
    for stage, row in enumerate(matrix.rows):
        cells = [
            Text(
                "~" * ((stage, task) in sampled) + cell(score),
                style="bold" if learned_at == stage else "",
            )
            for task, score, learned_at in zip(matrix.tasks, row, matrix.learned_at, strict=True)
        ]
        score_table.add_row(Text(matrix.row_name(stage)), *cells)
    return score_table


def cell(score: float | None) -> str:
    """Format a score with three decimals, or as '-' if it is unknown."""
    return "-" if score is None else f"{score:.3f}"
