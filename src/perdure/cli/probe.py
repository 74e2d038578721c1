"""`perdure probe`: rows beyond the tasks, asked of every stage."""

from typing import Any

from rich.text import Text

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, counted, grid, print_json, quiet, score, stderr, stdout
from perdure.errors import PerdureError


COLUMNS = ("loss", "forgetting", "recognition", "recall")
KEPT = ("lag", "recognition kept", "recall kept", "retainability")


@command(api.probe, rows="FILE", stages="--stages 0,2,5")
def probe(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure probe my-model facts.jsonl --learned 1"""
    if "stages" in arguments:
        arguments["stages"] = _numbers(arguments["stages"])
    quiet()
    probed = api.probe(**arguments, say=stderr().print)
    if as_json:
        print_json(probed)
        return
    learned = "learned" in arguments
    names = (*COLUMNS, *(KEPT if learned else ()))
    table = grid("stage", *names, right=names)
    for stage in probed["stages"]:
        name = " ".join(["base"] if not stage["stage"] else [str(stage["stage"]), stage["task"]])
        table.add_row(Text(name), *_cells(stage, learned))
    stdout().print(table)
    for line in _notes(probed):
        stdout().print(line)


def _numbers(stages: str) -> list[int]:
    try:
        return [int(number) for number in stages.split(",")]
    except ValueError:
        raise PerdureError(
            f"--stages: {stages!r} is no list of stages; write it as 0,2,5"
        ) from None


def _cells(stage: dict[str, Any], learned: bool) -> list[str]:
    cells = [score(stage[name], sign=name == "forgetting") for name in COLUMNS]
    if not learned:
        return cells
    kept, ratio = stage["retention"] or {}, stage["retainability"] or {}
    lag = "-" if stage["lag"] is None else str(stage["lag"])
    numbers = (kept.get("recognition"), kept.get("recall"), ratio.get("mean"))
    return [*cells, lag, *map(score, numbers)]


def _notes(probed: dict[str, Any]) -> list[str]:
    """What a number means nothing without."""
    counts = f"{counted(probed['rows'], 'row')}, {counted(probed['foils'], 'foil')}"
    cut = f", {probed['truncated']} cut to fit" if probed["truncated"] else ""
    notes = [f"{counts}{cut}; loss and forgetting in nats a token"]
    if taught := probed["effectivity"]:
        notes += [f"effectivity {score(taught['mean'], sign=True)} nats a row, {_over(taught)}"]
    last = probed["stages"][-1]["retainability"]
    if last:
        missing = f"{last['not_learned']} that were not learned"
        notes += [f"retainability of the last stage {_over(last)} and {missing}"]
    return notes


def _over(spread: dict[str, Any]) -> str:
    outliers = counted(spread["outliers"], "outlier")
    return f"over {counted(spread['rows'], 'row')}, without {outliers}"
