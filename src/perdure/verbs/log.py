"""`log` lists the history of a lineage."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from perdure.lineage.history import learned_by
from perdure.lineage.lineage import Lineage
from perdure.measure.verdict import TOGETHER, lost_now
from perdure.models.layout import SCORES, VERDICT
from perdure.reporting.results import method_in_words, method_name


ALWAYS = ("set", "rebase")  # the verbs whose lines `revert` does not take back
GENERAL_ABILITY = "general ability"  # its name among the names of lost tasks


def log(path: str | Path) -> list[dict[str, Any]]:
    """Return a mapping for each line of the ledger. See `perdure.api.log`."""
    lineage = Lineage(path)
    timings = lineage.timings()
    active = {0, *(stage["stage"] for stage in lineage.stages)}
    learning = [entry for entry in lineage.ledger if "task" in entry]
    learned = dict.fromkeys(task["id"] for e in learning for task in [*learned_by(e), e["task"]])
    lines = []
    for entry in lineage.ledger:
        is_refused = entry["verb"] == "refused"
        timing = timings.get(str(entry["stage"]), {}) if "task" in entry and not is_refused else {}
        seconds = {k: v for k, v in timing.get("seconds", {}).items() if k not in ("loss", "cpu")}
        scores = entry.get("scores", {})
        # Settings and the place of the base hold whatever stage is gone back to.
        is_active = entry["verb"] in ALWAYS or (entry["stage"] in active and not is_refused)
        # A stage that is no longer active may be damaged, which should not hide the others.
        is_readable = is_active or ("folder" in entry and lineage.is_intact(entry, VERDICT))
        verdict = lineage.verdict(entry) if is_readable else None
        lost = _lost(verdict) if verdict else []
        lines.append(
            {
                "stage": entry["stage"],
                "parent": entry["parent"],
                "verb": entry["verb"],
                "active": is_active,
                "task": entry.get("task", {}).get("id"),
                "method": method_name(entry["method"], entry["mode"])
                if "method" in entry
                else None,
                "method_in_words": method_in_words(entry["method"], entry["mode"])
                if "method" in entry
                else None,
                "lost": lost,
                "changed": entry.get("changed", {}),
                "dropped": _stages(lineage, entry.get("dropped", ())),
                "restored": _stages(lineage, entry.get("restored", ())),
                "reasons": entry.get("reasons", []),
                "undone": entry.get("undone"),
                "scores": {task: scores[task] for task in learned if task in scores},
                "sampled": _sampled(lineage, entry, is_active),
                "seconds": round(sum(seconds.values()), 2) if seconds else None,
                "date": timing.get("date"),
            }
        )
    return lines


def _sampled(lineage: Lineage, entry: dict[str, Any], is_active: bool) -> list[str]:
    """Return the tasks whose scores are estimated from a sample of their test rows."""
    is_readable = "sampled" in entry and (is_active or lineage.is_intact(entry, SCORES))
    return list(lineage.sampled(entry)) if is_readable else []


def _lost(verdict: dict[str, Any]) -> list[str]:
    """Return the names of what a stage lost."""
    together = not verdict["lost"] and verdict.get("together", {}).get("lost", False)
    general = lost_now(verdict["general"])
    return [*verdict["lost"], *[TOGETHER] * together, *[GENERAL_ABILITY] * general]


def _stages(lineage: Lineage, folders: Collection[str]) -> list[int]:
    """Return the numbers of the stages in some folders."""
    return [n for n, e in sorted(lineage.stage_entries.items()) if e.get("folder") in folders]
