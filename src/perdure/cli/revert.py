"""`perdure revert`: return to an earlier stage."""

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, print_json, stdout


@command(api.revert)
def revert(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure revert my-model --to 1"""
    entry = api.revert(**arguments)
    if as_json:
        print_json(entry)
        return
    folder = arguments["folder"]
    stdout().print(
        f"{folder}: the newest stage is now {entry['stage']}, it was {entry['parent']}; the next "
        f"task is learned from there\nto undo this:  perdure revert {folder} --to {entry['parent']}"
    )
