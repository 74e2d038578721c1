"""`engram log`: the history of a lineage."""

from typing import Any

from rich.text import Text

from engram.cli.output import Folder, Json, grid, print_json, score, stdout
from engram.lineage.lineage import Lineage
from engram.reporting.results import method_name


def log(folder: Folder, as_json: Json = False) -> None:
    """List the history of a lineage, the newest last; what was reverted is in brackets.

    Example: engram log my-model
    """
    lineage = Lineage(folder)
    lines = [_line(lineage, entry) for entry in lineage.ledger]
    if as_json:
        print_json(lines)
        return
    stdout().print(f"{folder}: base {lineage.pin['name']}")
    table = grid("stage", "verb", "task", "method", "scores", "seconds", "date", right=["seconds"])
    for line in lines[1:]:
        scores = ", ".join(f"{name} {score(value)}" for name, value in line["scores"].items())
        took = "-" if line["seconds"] is None else f"{line['seconds']:.1f}"
        cells = (line["task"], line["method"], scores, took, line["date"])
        stage = f"{line['stage']}" if line["active"] else f"({line['stage']})"
        table.add_row(stage, line["verb"], *(Text(str(cell or "-")) for cell in cells))
    stdout().print(table if lines[1:] else f"no stage yet: engram learn {folder} NAME train.jsonl")


def _line(lineage: Lineage, entry: dict[str, Any]) -> dict[str, Any]:
    made = "task" in entry
    timing = lineage.timings().get(str(entry["stage"]), {}) if made else {}
    seconds = {k: v for k, v in timing.get("seconds", {}).items() if k not in ("loss", "cpu")}
    scores = entry.get("scores", {})
    learned = (e["task"]["id"] for e in lineage.ledger if "task" in e)
    named = method_name(entry["method"], entry["mode"]) if "method" in entry else None
    return {
        "stage": entry["stage"],
        "parent": entry["parent"],
        "verb": entry["verb"],
        "active": entry["stage"] in {0, *(e["stage"] for e in lineage.stages)},
        "task": entry.get("task", {}).get("id"),
        "method": named,
        "scores": {task: scores[task] for task in learned if task in scores},
        "seconds": round(sum(seconds.values()), 2) if seconds else None,
        "date": timing.get("date"),
    }
