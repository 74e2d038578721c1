"""`engram learn`: one more task."""

from pathlib import Path
from typing import Annotated

import typer

from engram import api
from engram.cli.output import Data, Folder, Json, print_json, quiet, scores_table, stdout


def learn(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the task is called.")],
    train: Annotated[
        Path,
        typer.Argument(metavar="TRAIN", help="Its rows: .jsonl, .jsonl.gz, .parquet or .csv."),
    ],
    test: Annotated[Path | None, typer.Option(help="Rows to score it on.")] = None,
    dev: Annotated[Path | None, typer.Option(help="Rows to choose settings on.")] = None,
    metric: Annotated[str, typer.Option(help="How an answer is scored.")] = "exact_match",
    option: Annotated[
        list[str] | None, typer.Option(help="A possible answer; once for each of them.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Learn one more task as a new stage. The same command again goes on where it was stopped.

    Example: engram learn my-model reviews reviews.jsonl --test held-out.jsonl
    """
    quiet()
    from engram.cli.progress import Shown

    with Shown() as shown:
        entry = api.learn(folder, name, train, test, dev, metric, option, data, [shown], shown.say)
    if as_json:
        print_json(entry)
        return
    stdout().print(f"{folder}: stage {entry['stage']} learned {name}; after it")
    stdout().print(scores_table(entry["scores"]))
    stdout().print(f"the history:  engram log {folder}")
