"""`perdure learn`: learn one more task."""

from pathlib import Path
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
    verdict_text,
)
from perdure.config import load_config, overrides
from perdure.errors import PerdureError
from perdure.places import where_it_goes


@command(api.learn, training="[training.KEY=VALUE]...")
def learn(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure learn my-model reviews reviews.jsonl --test held-out.jsonl"""
    quiet()
    from perdure.cli.progress import Shown

    arguments["training"] = task_training(arguments.get("training"))
    if arguments["dry_run"]:
        plan = api.learn(**arguments, say=stderr_line)
        if as_json:
            print_json(plan)
        else:
            print_parts(planned(plan))
        return
    with Shown() as shown:
        entry = api.learn(**arguments, callbacks=[shown], say=shown.say)
    print_stage(arguments["folder"], entry, f"learned {arguments['name']}", as_json)


def print_stage(folder: Path, entry: dict[str, Any], what: str, as_json: bool) -> None:
    """Print a new stage's scores and verdict; `what` says how it came about."""
    stage = api.show(folder, entry["stage"])
    verdict, sampled = stage["verdict"], stage["sampled"]
    if as_json:
        print_json({**entry, "verdict": verdict, **({"sampled": sampled} if sampled else {})})
        return
    stdout().print(f"{folder}: stage {entry['stage']} {what}; the scores:")
    stdout().print(scores_table(entry["scores"], sampled))
    stdout().print(verdict_text(verdict, entry["stage"], folder))
    stdout().print(f"the history:  perdure log {folder}")


def task_training(settings: list[str] | None) -> dict[str, Any]:
    """Read settings `training.KEY=VALUE` as the `training:` of a task.

    Raises:
        PerdureError: another key, which is set for the whole lineage.
    """
    for key in overrides(settings):
        if not key.startswith("training."):
            hint = where_it_goes(key)
            if hint.startswith("write training."):
                raise PerdureError(f"{key}: not a key of a task; {hint}")
            raise PerdureError(
                f"{key}: is set for the whole lineage, by `init` or `perdure set`; a task can have "
                "only its own training settings, such as training.learning_rate=1e-4"
            )
    return load_config({}, settings).training
