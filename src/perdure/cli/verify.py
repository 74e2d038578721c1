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
    lineage = Lineage(folder, edited=True)
    stages = sorted(lineage.stage_entries.items())
    dropped = [number for number, entry in stages if lineage.is_gone(entry)]
    if as_json:
        result = {"ok": not problems, "problems": problems, "dropped": dropped}
        print_json({"lineage": str(folder), **result})
    elif problems:
        for problem in problems:
            complain(problem)
    else:
        learned = counted(sum(number > 0 for number, _ in stages), "stage")
        stdout().print(f"{folder}: ledger, base and {learned} are as they were written")
    if dropped and not as_json:
        numbers = ", ".join(map(str, dropped))
        restore = f"`perdure repair {folder} --stage N` learns one again"
        stdout().print(f"the weights of stage {numbers} were dropped; {restore}")
    if problems:
        raise typer.Exit(1)
