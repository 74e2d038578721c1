"""`engram init`: a new lineage."""

from pathlib import Path
from typing import Annotated

import typer

from engram.cli.output import Folder, Json, Settings, print_json, quiet, stdout
from engram.config import load_config


def init(
    folder: Folder,
    settings: Settings = None,
    base: Annotated[
        str | None,
        typer.Option(help="A model's folder or its name on the hub, `default` or `smollm2`."),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A PEFT adapter to go on from; it names its base."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="The settings, as for `engram run`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a lineage: a folder whose stage 0 is the untouched base.

    Example: engram init my-model --base Qwen/Qwen3-0.6B method=recurrent_kif
    """
    made = load_config(config or {}, settings)
    made.base = base or made.base
    quiet()
    from engram.verbs import init as verb

    lineage = verb.init(folder, made, adapter)
    if as_json:
        print_json({"lineage": str(folder), "base": lineage.pin})
        return
    stdout().print(
        f"{folder}: made on base {lineage.pin['name']}; next, teach it a task:\n"
        f"  engram learn {folder} NAME train.jsonl --test test.jsonl"
    )
