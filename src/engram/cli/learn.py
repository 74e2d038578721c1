"""`engram learn`: one more task."""

from typing import Annotated, Any

import typer

from engram import api
from engram.cli.dry_run import planned
from engram.cli.output import (
    Data,
    DryRun,
    Folder,
    Json,
    print_json,
    quiet,
    scores_table,
    stderr_line,
    stdout,
)
from engram.config import load_config, overrides
from engram.errors import EngramError
from engram.places import where_it_goes


def learn(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the task is called.")],
    train: Annotated[
        str,
        typer.Argument(metavar="TRAIN", help="Its rows: a file, or hub:OWNER/NAME[:SPLIT]."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[training.KEY=VALUE]...", help="Its own training, for it alone."),
    ] = None,
    test: Annotated[str | None, typer.Option(help="Rows to score it on.")] = None,
    dev: Annotated[str | None, typer.Option(help="Rows to choose settings on.")] = None,
    metric: Annotated[str, typer.Option(help="How an answer is scored.")] = "exact_match",
    option: Annotated[
        list[str] | None, typer.Option(help="A possible answer; once for each of them.")
    ] = None,
    data: Data = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Learn one more task as a new stage. The same command again goes on where it was stopped.

    Example: engram learn my-model reviews reviews.jsonl --test held-out.jsonl
    """
    quiet()
    from engram.cli.progress import Shown

    training = own_training(settings)
    if dry_run:
        task = api.task_of(folder, name, train, test, dev, metric, option, training)
        found = api.dry_run_of_learn(folder, task, stderr_line)
        print_json(found) if as_json else [stdout().print(part) for part in planned(found)]
        return
    with Shown() as shown:
        entry = api.learn(
            *(folder, name, train, test, dev, metric, option, data, [shown], shown.say),
            training=training,
        )
    if as_json:
        print_json(entry)
        return
    stdout().print(f"{folder}: stage {entry['stage']} learned {name}; after it")
    stdout().print(scores_table(entry["scores"]))
    stdout().print(f"the history:  engram log {folder}")


def own_training(settings: list[str] | None) -> dict[str, Any]:
    """`training.KEY=VALUE` texts as a task's own `training:`; other keys belong to the lineage."""
    for key in overrides(settings):
        if not key.startswith("training."):
            hint = where_it_goes(key)
            if hint.startswith("write training."):
                raise EngramError(f"{key}: is no key of a task; {hint}")
            raise EngramError(
                f"{key}: is the lineage's, set when it was made; a task may have its own training "
                "alone, such as training.learning_rate=1e-4"
            )
    return load_config({}, settings).training
