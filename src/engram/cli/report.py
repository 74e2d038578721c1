"""`engram report`: lineages as a page."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from engram import api
from engram.cli.output import Json, grid, print_json, score, stdout
from engram.measure.matrix import to_dict
from engram.reporting.groups import MEASURES, sets
from engram.reporting.read import Run


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="Lineages, or folders that hold some."),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE.html", help="The page; its .md and .csv are put beside it."),
    ] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Make a page of lineages: what was learned and forgotten, at what cost, and how to repeat it.

    Example: engram report quickstart --out report.html
    """
    runs, files = api.report(folders, out)
    if as_json:
        print_json({"files": list(map(str, files)), "lineages": list(map(_numbers, runs))})
        return
    table = grid("method", "lineages", *MEASURES.values(), right=["lineages", *MEASURES.values()])
    for one in sets(runs):
        for method in one.methods:
            means = [method.numbers[name].mean for name in MEASURES]
            signs = [name.endswith("transfer") for name in MEASURES]
            cells = [score(mean, sign) for mean, sign in zip(means, signs, strict=True)]
            table.add_row(Text(method.label), str(len(method.runs)), *cells)
        table.add_row(Text(f"scored by {one.mode}"), end_section=True)
    stdout().print(table)
    stdout().print(f"the page:         {files[0]}")
    stdout().print(f"the same numbers: {files[1]}, {files[2]}")


def _numbers(run: Run) -> dict:
    known = {"lineage": str(run.path), "method": run.method, "seed": run.seed}
    return known | run.numbers | {"seconds": run.seconds, "matrix": to_dict(run.matrix)}
