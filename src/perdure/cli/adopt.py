"""`perdure adopt`: record a checkpoint that was trained elsewhere."""

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import (
    Json,
    print_json,
    quiet,
    scores_table,
    stderr_line,
    stdout,
    verdict_text,
)


@command(api.adopt)
def adopt(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure adopt my-model outputs/checkpoint-500 dpo --test held-out.jsonl"""
    quiet()
    entry = api.adopt(**arguments, say=stderr_line)
    folder = arguments["folder"]
    verdict = api.show(folder, entry["stage"])["verdict"]
    if as_json:
        print_json({**entry, "verdict": verdict})
        return
    stdout().print(f"{folder}: stage {entry['stage']} adopted {arguments['name']}; the scores:")
    stdout().print(scores_table(entry["scores"]))
    stdout().print(verdict_text(verdict, entry["stage"], folder))
    stdout().print(f"the history:  perdure log {folder}")
