"""`engram evaluate`: a stage's scores, taken again."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from engram import api
from engram.cli.output import (
    Data,
    Folder,
    Json,
    Stage,
    grid,
    print_json,
    quiet,
    score,
    stderr,
    stdout,
)


def evaluate(
    folder: Folder,
    stage: Stage = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Only this task; may be given more than once.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="`generate` or `options`; the lineage's own if left out."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Write the answer to every test row there."),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Score a stage on the tasks learned so far. Changes nothing.

    Example: engram evaluate my-model --stage 1 --task reviews
    """
    quiet()
    cells = api.evaluate(folder, stage, task or (), mode, data, stderr().print, predictions)
    if as_json:
        print_json(cells)
        return
    table = grid("task", "score", "metric", "mode", "rows", "truncated", right=["score", "rows"])
    for name, cell in cells.items():
        about = (str(cell.get(key, "-")) for key in ("metric", "mode", "rows", "truncated"))
        table.add_row(Text(name), score(cell["score"]), *about)
    stdout().print(table)
