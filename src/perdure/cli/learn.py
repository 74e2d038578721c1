"""`perdure learn`: one more task."""

from typing import Any

from perdure import api
from perdure.cli.dry_run import planned
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import (
    Json,
    print_json,
    print_parts,
    quiet,
    scores_table,
    stderr_line,
    stdout,
)
from perdure.config import load_config, overrides
from perdure.errors import PerdureError
from perdure.places import where_it_goes


@command(api.learn, training="[training.KEY=VALUE]...")
def learn(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure learn my-model reviews reviews.jsonl --test held-out.jsonl"""
    quiet()
    from perdure.cli.progress import Shown

    arguments["training"] = own_training(arguments.get("training"))
    if arguments["dry_run"]:
        plan = api.learn(**arguments, say=stderr_line)
        print_json(plan) if as_json else print_parts(planned(plan))
        return
    with Shown() as shown:
        entry = api.learn(**arguments, callbacks=[shown], say=shown.say)
    if as_json:
        print_json(entry)
        return
    folder = arguments["folder"]
    stdout().print(f"{folder}: stage {entry['stage']} learned {arguments['name']}; after it")
    stdout().print(scores_table(entry["scores"]))
    stdout().print(f"the history:  perdure log {folder}")


def own_training(settings: list[str] | None) -> dict[str, Any]:
    """`training.KEY=VALUE` texts as a task's own `training:`; other keys belong to the lineage."""
    for key in overrides(settings):
        if not key.startswith("training."):
            hint = where_it_goes(key)
            if hint.startswith("write training."):
                raise PerdureError(f"{key}: is no key of a task; {hint}")
            raise PerdureError(
                f"{key}: is the lineage's, set when it was made; a task may have its own training "
                "alone, such as training.learning_rate=1e-4"
            )
    return load_config({}, settings).training
