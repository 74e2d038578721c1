"""`perdure unpack`: restore a checkpoint from a pack."""

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, print_json, quiet, stderr_line, stdout


@command(api.unpack, folder="PACK", out="FOLDER", base="--base BASE")
def unpack(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure unpack sft-pack restored"""
    quiet()
    result = api.unpack(**arguments, say=stderr_line)
    if as_json:
        print_json(result)
        return
    how = (
        "whose weights are bit by bit those that were packed"
        if result["exact"]
        else "what was packed, at a low rank"
    )
    stdout().print(f"{result['model']}: a plain model, {how}")
