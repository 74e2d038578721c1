"""`log` lists the history of a lineage."""

from pathlib import Path
from typing import Any

from perdure.lineage.lineage import Lineage
from perdure.reporting.results import method_name


def log(path: str | Path) -> list[dict[str, Any]]:
    """Return a mapping for each line of the ledger. See `perdure.api.log`."""
    lineage = Lineage(path)
    timings = lineage.timings()
    active = {0, *(stage["stage"] for stage in lineage.stages)}
    learned = [entry["task"]["id"] for entry in lineage.ledger if "task" in entry]
    lines = []
    for entry in lineage.ledger:
        timing = timings.get(str(entry["stage"]), {}) if "task" in entry else {}
        seconds = {k: v for k, v in timing.get("seconds", {}).items() if k not in ("loss", "cpu")}
        scores = entry.get("scores", {})
        lost = (lineage.verdict(entry) or {}).get("lost", [])
        lines.append(
            {
                "stage": entry["stage"],
                "parent": entry["parent"],
                "verb": entry["verb"],
                "active": entry["stage"] in active,
                "task": entry.get("task", {}).get("id"),
                "method": method_name(entry["method"], entry["mode"])
                if "method" in entry
                else None,
                "lost": lost,
                "changed": entry.get("changed", {}),
                "scores": {task: scores[task] for task in learned if task in scores},
                "seconds": round(sum(seconds.values()), 2) if seconds else None,
                "date": timing.get("date"),
            }
        )
    return lines
