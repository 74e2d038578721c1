"""`perdure verify`: check everything against the ledger."""

import typer

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, complain, counted, print_json, stdout
from perdure.lineage.dropped import how_to_restore
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
    ways: dict[str, list[int]] = {}  # the numbers of the dropped stages, by what makes them again
    for number in dropped:
        verb = lineage.stage_entries[number]["verb"]
        ways.setdefault(how_to_restore(folder, "N", verb), []).append(number)
    for restore, numbers in ways.items() if not as_json else ():
        listed = ", ".join(map(str, numbers))
        stdout().print(f"the weights of stage {listed} were dropped; {restore}")
    if problems:
        raise typer.Exit(1)
