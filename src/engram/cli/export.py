"""`engram export`: one plain model."""

from pathlib import Path
from typing import Annotated

import typer

from engram import api
from engram.cli.output import Folder, Json, Stage, print_json, quiet, stdout


def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the model.")],
    stage: Stage = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the base's own if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a stage as one plain model, everything merged in, that loads with `AutoModel`.

    Example: engram export my-model merged --dtype bfloat16
    """
    quiet()
    written = api.export(folder, out, stage, dtype)
    if as_json:
        print_json({"lineage": str(folder), "model": str(written)})
        return
    stdout().print(f"{written}: a plain model; its README.md holds the lines that load it")
