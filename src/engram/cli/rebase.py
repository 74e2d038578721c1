"""`engram rebase`: the base has moved."""

from typing import Annotated

import typer

from engram import api
from engram.cli.output import Folder, Json, print_json, stdout


def rebase(
    folder: Folder,
    base: Annotated[str, typer.Argument(metavar="BASE", help="Its new folder or name.")],
    revision: Annotated[str | None, typer.Option(help="A commit, for a name of the hub.")] = None,
    as_json: Json = False,
) -> None:
    """Say where the base lies now. Its files must be those the lineage was made on.

    Example: engram rebase my-model /models/qwen3-0.6b
    """
    entry = api.rebase(folder, base, revision)
    if as_json:
        print_json(entry)
        return
    stdout().print(f"{folder}: on base {entry['base']['name']} now, the same files by their sha256")
