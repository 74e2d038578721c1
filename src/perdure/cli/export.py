"""`perdure export`: write a stage as one plain model, or its adapter on its own."""

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, print_json, quiet, stdout


@command(api.export)
def export(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure export my-model merged --dtype bfloat16"""
    quiet()
    written = api.export(**arguments)
    if as_json:
        print_json({"lineage": str(arguments["folder"]), "model": str(written)})
        return
    what = "an adapter for PEFT" if arguments["adapter"] else "a plain model"
    stdout().print(f"{written}: {what}; its README.md shows how to load it")
