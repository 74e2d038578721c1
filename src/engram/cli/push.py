"""`engram push`: a stage to the hub."""

from typing import Annotated

import typer

from engram import api
from engram.cli.output import Folder, Json, Stage, print_json, quiet, stdout


def push(
    folder: Folder,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository.")],
    stage: Stage = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="As one plain model, as `engram export` makes it.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="If it is made now.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a stage to the hub, with its card and without the remembered rows.

    Example: engram push my-model me/my-model-reviews --private
    """
    quiet()
    address = api.push(folder, repository, stage, merged, private)
    if as_json:
        print_json({"lineage": str(folder), "address": address})
        return
    stdout().print(address)
