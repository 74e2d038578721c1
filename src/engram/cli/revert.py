"""`engram revert`: back to an earlier stage."""

from typing import Annotated

import typer

from engram import api
from engram.cli.output import Folder, Json, print_json, stdout


def revert(
    folder: Folder,
    to: Annotated[
        int | None, typer.Option(help="The stage to go back to; one back if left out, 0: the base.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Go back to an earlier stage. Deletes nothing: `revert --to` goes forward again as well.

    Example: engram revert my-model --to 1
    """
    entry = api.revert(folder, to)
    if as_json:
        print_json(entry)
        return
    stdout().print(
        f"{folder}: the newest stage is {entry['stage']} now, it was {entry['parent']}; the next "
        f"task is learned from there\nto undo this:  engram revert {folder} --to {entry['parent']}"
    )
