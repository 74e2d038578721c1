"""`perdure pack`: store a checkpoint as its difference from its base."""

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, print_json, quiet, stderr_line, stdout


@command(api.pack, out="FOLDER", base="--base BASE")
def pack(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure pack sft sft-pack --base Qwen/Qwen3-0.6B"""
    quiet()
    result = api.pack(**arguments, say=stderr_line)
    if as_json:
        print_json(result)
        return
    share = result["bytes"] / result["bytes_of_checkpoint"]
    exact = "bit by bit" if result["exact"] else f"with {result['kept']:.2%} of the sum of squares"
    stdout().print(
        f"{result['pack']}: {share:.0%} of the size of the checkpoint, whose weights it restores "
        f"{exact}"
    )
