"""`perdure push`: upload a stage to the hub."""

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, print_json, quiet, stdout


@command(api.push, repository="OWNER/NAME")
def push(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure push my-model me/my-model-reviews --private"""
    quiet()
    address = api.push(**arguments)
    if as_json:
        print_json({"lineage": str(arguments["folder"]), "address": address})
        return
    stdout().print(address)
