"""`perdure check`: what is left of the base's general ability."""

from typing import Any

import typer
from rich.text import Text

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, grid, print_json, quiet, shortened, stderr_line, stdout
from perdure.errors import LOST


SHOWN = 5  # flipped rows
LENGTH = 100  # characters of an answer that are shown


@command(
    api.check,
    against="--against BASE",
    rows="--rows FILE",
    max_new_tokens="--tokens",
    lm_eval="--lm-eval TASK,...",
    lm_eval_path="--lm-eval-path FOLDER",
)
def check(arguments: Arguments, as_json: Json = False) -> None:
    """Ends with status 3 if general ability is lost, and with 0 if not.

    Example: perdure check my-adapter
    """
    quiet()
    result = api.check(**arguments, say=stderr_line)
    if as_json:
        print_json(result)
    else:
        _show(result)
    if result["lost"]:
        raise typer.Exit(LOST)


def _show(result: dict[str, Any]) -> None:
    numbers = ("rows", "passed before", "passed now", "fell", "rose")
    table = grid("skill", *numbers, right=numbers)
    keys = ("rows", "passed_by_reference", "passed", "fell", "rose")
    for skill, counts in result["skills"].items():
        table.add_row(Text(skill), *(str(counts[key]) for key in keys))
    stdout().print(table)
    fallen = [flip for flip in result["flips"] if not flip["passes"]]
    for flip in fallen[:SHOWN]:
        stdout().print(f"{flip['id']}: {_short(flip['prompt'])}")
        stdout().print(f"    before: {_short(flip['before'])}")
        stdout().print(f"    now:    {_short(flip['now'])}")
    if len(fallen) > SHOWN:
        stdout().print(f"... and {len(fallen) - SHOWN} more; --json lists them all")
    if fallen:
        stdout().print()
    for line in result["verdict"]:
        stdout().print(line)


def _short(text: str) -> str:
    return shortened(text, LENGTH) or "(empty)"
