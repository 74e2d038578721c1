"""Printing: results go to stdout, everything else to stderr. Only the main process prints."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from perdure import processes
from perdure.printable import printable, printable_json
from perdure.processes import is_main
from perdure.reporting.verdict import words


PACKAGE = Path(__file__).parent.parent
FORMAT = warnings.formatwarning
WIDE = 200  # the width of tables if stdout is not a terminal, in characters

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


class _Console(Console):
    """A console that shows, and does not pass on, what a terminal would obey in a text."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def stdout() -> Console:
    """The console for results. Markup is off, because users may give tasks any name."""
    width = None if sys.stdout.isatty() else WIDE
    return _Console(markup=False, highlight=False, width=width, quiet=not is_main())


def stderr() -> Console:
    """The console for progress and errors."""
    return _Console(stderr=True, markup=False, highlight=False, quiet=not is_main())


def stderr_line(line: str) -> None:
    """Print a note or a warning to stderr, on one line."""
    if is_main():
        typer.echo(printable(" ".join(line.split()), lines=False), err=True)


def print_described(
    described: list[dict[str, Any]],
    as_json: bool,
    one: bool,
    description: Callable[[dict[str, Any]], list[RenderableType]],
    table: Callable[[list[dict[str, Any]]], list[RenderableType]],
) -> None:
    """Print things that are found by name: as JSON, `one` with all about it, or a table of all."""
    if as_json:
        print_json(described)
    else:
        print_parts(description(described[0]) if one else table(described))


def print_parts(parts: Iterable[RenderableType]) -> None:
    """Print texts and tables to stdout, one below the other."""
    for part in parts:
        stdout().print(part)


def print_json(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2)
    if is_main():
        typer.echo(printable_json(text))


def print_part(part: str) -> None:
    """Print a part of a text that is not complete yet."""
    typer.echo(printable(part), nl=False)


def score(value: float | None, sign: bool = False) -> str:
    """A score as text with three decimals, `-` if it is unknown."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.3f}"


def counted(number: int, noun: str) -> str:
    """The number with its noun, such as `1 row` and `2 rows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def grid(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table with these columns; those in `right` are aligned to the right."""
    table = Table(box=SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def scores_table(
    scores: Mapping[str, float | None], sampled: Mapping[str, dict[str, Any]]
) -> Table:
    """A table of the tasks and their scores at a stage.

    If tasks were asked only some of their test rows (`Lineage.sampled`), it shows how many, and the
    95 % intervals.
    """
    if not sampled:
        table = grid("task", "score", right=["score"])
        for task, value in scores.items():
            table.add_row(Text(task), score(value))
        return table
    table = grid("task", "score", "95 % interval", "rows asked", right=["score", "rows asked"])
    for task, value in scores.items():
        cells = ["", "all"]
        if task in sampled:
            low, high = sampled[task]["interval"]
            cells = [
                f"{low:.3f} to {high:.3f}",
                f"{sampled[task]['rows']} of {sampled[task]['of']}",
            ]
        elif value is None:
            cells = ["", "none"]
        table.add_row(Text(task), "~" * (task in sampled) + score(value), *cells)
    return table


def verdict_text(judged: dict[str, Any] | None, stage: int, folder: str | Path) -> Text:
    """A verdict on a stage; its losses are red on a terminal."""
    text = Text()
    for line, is_loss in words(judged, stage, str(folder)) if judged else ():
        text.append(line + "\n", style="bold red" if is_loss else "")
    text.rstrip()
    return text


def complain(line: str) -> None:
    """Print an error to stderr, with any line breaks replaced by spaces."""
    text = printable(" ".join(line.split()), lines=False)
    if not processes.complain(text):
        typer.echo(f"perdure: {text}", err=True)


def warning_text(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: Any = None
) -> str:
    """Return how a warning of Python is printed: one of this package is one line, from one process.

    The arguments are those of `warnings.formatwarning`.
    """
    if category is not UserWarning or not Path(filename).is_relative_to(PACKAGE):
        return FORMAT(message, category, filename, lineno, line)
    text = " ".join(str(message).split())
    return f"warning: {printable(text, lines=False)}\n" if is_main() else ""


def quiet() -> None:
    """Hide messages of transformers and PEFT that do not help a user of the command line."""
    from transformers.utils import logging

    # datasets reads the variable when it is imported, which takes long, and few verbs need it.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
    # The task is stopped for such a gradient, with an error line.
    warnings.filterwarnings("ignore", "recurrent_kif: skipped a gradient that is not finite")
    warnings.formatwarning = warning_text
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def shortened(text: str, length: int = 60) -> str:
    """Return a text on one line, of which only the beginning is shown if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."
