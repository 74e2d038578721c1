"""`engram verify`: is everything as the ledger says."""

import typer

from engram import api
from engram.cli.output import Folder, Json, complain, print_json, stdout
from engram.lineage.lineage import Lineage


def verify(folder: Folder, as_json: Json = False) -> None:
    """Check every hash of a lineage: the ledger, the stages' files, the base. Changes nothing.

    Ends with status 1 if anything is not as the ledger says.

    Example: engram verify my-model
    """
    problems = api.verify(folder)
    if as_json:
        print_json({"lineage": str(folder), "ok": not problems, "problems": problems})
    elif problems:
        for problem in problems:
            complain(problem)
    else:
        stages = sum("task" in entry for entry in Lineage(folder).ledger)
        stdout().print(f"{folder}: ledger, base and {stages} stages are as they were written")
    if problems:
        raise typer.Exit(1)
