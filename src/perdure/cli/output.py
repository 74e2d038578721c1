"""What the verbs print, and where: results on stdout, everything else on stderr."""

import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from logging import ERROR, getLogger
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text


WIDE = 200  # columns of a table that does not go to a terminal

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def stdout() -> Console:
    """For results. Task names are the user's, so nothing in a text is read as markup."""
    width = None if sys.stdout.isatty() else WIDE
    return Console(markup=False, highlight=False, width=width)


def stderr() -> Console:
    """For progress and errors."""
    return Console(stderr=True, markup=False, highlight=False)


def stderr_line(line: str) -> None:
    """A note or a warning, on one line."""
    typer.echo(" ".join(line.split()), err=True)


def print_parts(parts: Iterable[RenderableType]) -> None:
    """Texts and tables on stdout, one below the other."""
    for part in parts:
        stdout().print(part)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2))


def score(value: float | None, sign: bool = False) -> str:
    """Three decimals, `-` when it is unknown."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.3f}"


def counted(number: int, thing: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def grid(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table with these columns, those in `right` aligned to the right."""
    table = Table(box=SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def scores_table(scores: dict[str, float | None]) -> Table:
    """Task and score, a line each."""
    table = grid("task", "score", right=["score"])
    for task, value in scores.items():
        table.add_row(Text(task), score(value))
    return table


def complain(line: str) -> None:
    """One line on stderr, whatever line breaks a file's name or a library's message brings."""
    typer.echo(f"perdure: {' '.join(line.split())}", err=True)


def quiet() -> None:
    """Hush what transformers and PEFT say that is of no use to someone who typed a verb."""
    getLogger("bitsandbytes").setLevel(ERROR)  # where it is installed, it misses optional kernels
    from datasets import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
