"""`perdure probe`: measure every stage on rows that belong to no task."""

from typing import Any

from rich.text import Text

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, counted, grid, print_json, quiet, score, stderr_line, stdout
from perdure.errors import PerdureError


COLUMNS = ("loss", "forgetting", "recognition", "recall")
RETENTION = ("lag", "recognition kept", "recall kept", "retainability")


@command(api.probe, rows="FILE", stages="--stages 0,2,5")
def probe(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure probe my-model facts.jsonl --learned 1"""
    if "stages" in arguments:
        arguments["stages"] = _numbers(arguments["stages"])
    quiet()
    probed = api.probe(**arguments, say=stderr_line)
    if as_json:
        print_json(probed)
        return
    learned = "learned" in arguments
    names = (*COLUMNS, *(RETENTION if learned else ()))
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
            f"--stages: {stages!r} is not a list of stages; write it as 0,2,5"
        ) from None


def _cells(stage: dict[str, Any], learned: bool) -> list[str]:
    cells = [score(stage[name], sign=name == "forgetting") for name in COLUMNS]
    if not learned:
        return cells
    retention, retainability = stage["retention"] or {}, stage["retainability"] or {}
    lag = "-" if stage["lag"] is None else str(stage["lag"])
    numbers = (retention.get("recognition"), retention.get("recall"), retainability.get("mean"))
    return [*cells, lag, *map(score, numbers)]


def _notes(probed: dict[str, Any]) -> list[str]:
    """The counts and units that are needed to read the numbers."""
    counts = f"{counted(probed['rows'], 'row')}, {counted(probed['foils'], 'foil')}"
    truncated = f", {probed['truncated']} truncated" if probed["truncated"] else ""
    notes = [f"{counts}{truncated}; loss and forgetting in nats per token"]
    if effectivity := probed["effectivity"]:
        mean = score(effectivity["mean"], sign=True)
        notes.append(f"effectivity {mean} nats per row, {_over(effectivity)}")
    if retainability := probed["stages"][-1]["retainability"]:
        missing = f"{retainability['not_learned']} that were not learned"
        notes.append(f"retainability of the last stage {_over(retainability)} and {missing}")
    return notes


def _over(spread: dict[str, Any]) -> str:
    outliers = counted(spread["outliers"], "outlier")
    return f"over {counted(spread['rows'], 'row')}, without {outliers}"
