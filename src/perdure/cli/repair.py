"""`perdure repair`: restore what can be restored."""

import typer

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, complain, print_json, quiet, stderr_line, stdout


@command(api.repair)
def repair(arguments: Arguments, as_json: Json = False) -> None:
    """Ends with status 1 if something could not be restored.

    Example: perdure repair my-model
    """
    quiet()
    result = api.repair(**arguments, say=stderr_line)
    if as_json:
        print_json({"lineage": str(arguments["folder"]), **result})
    else:
        for line in result["restored"]:
            stdout().print(line)
        for line in result["lost"]:
            complain(line)
        if not result["restored"] and not result["lost"]:
            stdout().print(f"{arguments['folder']}: nothing is damaged")
    if result["lost"]:
        raise typer.Exit(1)
