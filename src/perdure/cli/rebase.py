"""`perdure rebase`: record the new place of the base."""

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, print_json, stdout


@command(api.rebase)
def rebase(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure rebase my-model /models/qwen3-0.6b"""
    entry = api.rebase(**arguments)
    if as_json:
        print_json(entry)
        return
    name = entry["base"]["name"]
    stdout().print(f"{arguments['folder']}: now on base {name}, whose files have the same sha256")
