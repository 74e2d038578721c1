"""`engram rebase`: the base has moved."""

from engram import api
from engram.cli.from_api import Arguments, command
from engram.cli.output import Json, print_json, stdout


@command(api.rebase)
def rebase(arguments: Arguments, as_json: Json = False) -> None:
    """Example: engram rebase my-model /models/qwen3-0.6b"""
    entry = api.rebase(**arguments)
    if as_json:
        print_json(entry)
        return
    name = entry["base"]["name"]
    stdout().print(f"{arguments['folder']}: on base {name} now, the same files by their sha256")
