"""`perdure verify`: check everything against the ledger."""

import typer

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, complain, counted, print_json, stdout
from perdure.lineage.lineage import Lineage


@command(api.verify)
def verify(arguments: Arguments, as_json: Json = False) -> None:
    """Ends with status 1 if anything differs from the ledger.

    Example: perdure verify my-model
    """
    problems, folder = api.verify(**arguments), arguments["folder"]
    if as_json:
        print_json({"lineage": str(folder), "ok": not problems, "problems": problems})
    elif problems:
        for problem in problems:
            complain(problem)
    else:
        learned = [stage for stage in Lineage(folder).stage_entries if stage]
        stages = counted(len(learned), "stage")
        stdout().print(f"{folder}: ledger, base and {stages} are as they were written")
    if problems:
        raise typer.Exit(1)
