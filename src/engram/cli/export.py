"""`engram export`: one plain model."""

from engram import api
from engram.cli.from_api import Arguments, command
from engram.cli.output import Json, print_json, quiet, stdout


@command(api.export)
def export(arguments: Arguments, as_json: Json = False) -> None:
    """Example: engram export my-model merged --dtype bfloat16"""
    quiet()
    written = api.export(**arguments)
    if as_json:
        print_json({"lineage": str(arguments["folder"]), "model": str(written)})
        return
    stdout().print(f"{written}: a plain model; its README.md holds the lines that load it")
