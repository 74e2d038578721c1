"""`perdure adopt`: record a checkpoint that was trained elsewhere."""

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.learn import print_stage
from perdure.cli.output import Json, quiet, stderr_line


@command(api.adopt)
def adopt(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure adopt my-model outputs/checkpoint-500 dpo --test held-out.jsonl"""
    quiet()
    entry = api.adopt(**arguments, say=stderr_line)
    print_stage(arguments["folder"], entry, f"adopted {arguments['name']}", as_json)
