"""The one form of every result file, read, merged and written; nothing here imports torch.

{"benchmark", "command", "versions", "device", "date", "records": [{"method", "order", "seed",
"overall", "backward_transfer", "forward_transfer", "seconds", "seconds_scoring", ...}]}
"""

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engram.errors import EngramError
from engram.lineage.files import write_text
from engram.lineage.lineage import Lineage
from engram.measure.matrix import backward_transfer, forward_transfer, overall


KEY = ("method", "order", "seed")  # one record each
PACKAGES = ("engram", "torch", "transformers", "peft")


def method_name(method: Any, mode: str = "sequential") -> str:
    """A record's name of a method: with its preset, several joined by `+`; a mode's own name."""
    if mode != "sequential":
        return mode
    named = []
    for part in method if isinstance(method, list) else [method]:
        for name, given in (part if isinstance(part, dict) else {part: {}}).items():
            preset = (given or {}).get("preset")
            named.append(f"{name}_{preset}" if preset else str(name))
    return "+".join(named)


def order_name(tasks: Any) -> str:
    """A record's name of what stands under `tasks:`."""
    if isinstance(tasks, list):
        return "+".join(str(task.get("name") or task.get("benchmark")) for task in tasks)
    return str(tasks)


def record(lineage: Lineage, command: str) -> dict[str, Any]:
    """The record of the run that `command` made; seconds are summed over its stages."""
    config, matrix = lineage.config, lineage.matrix()
    seconds = stage_seconds(lineage)
    return {
        "method": method_name(config.method, config.mode),
        "order": order_name(config.tasks),
        "seed": config.seed,
        "overall": overall(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(matrix),
        "seconds": round(sum(s["learning"] for s in seconds.values()), 2),
        "seconds_scoring": round(sum(s["scoring"] for s in seconds.values()), 2),
        "lineage": str(lineage.path),
        "command": command,
    }


def stage_seconds(lineage: Lineage) -> dict[int, dict[str, float]]:
    """By stage, the seconds of learning (preparing and training) and of scoring."""
    times, found = lineage.timings(), {}
    for entry in lineage.stages:
        took = times.get(str(entry["stage"]), {}).get("seconds", {})
        learning = took.get("prepare", 0.0) + took.get("train", 0.0)
        found[entry["stage"]] = {"learning": learning, "scoring": took.get("score", 0.0)}
    return found


def device(threads: int | None) -> str:
    """The kind of machine, as result files name it."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {threads} threads" if threads != 1 else "cpu, 1 thread"


def load(path: Path) -> list[dict[str, Any]]:
    """The records of a result file; none if there is no file yet.

    Raises:
        EngramError: the file is there and is something else.
    """
    if not path.exists():
        return []
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["records"]
        if all(set(KEY) <= set(found) for found in records):
            return records
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise EngramError(f"{path}: not a result file; give --results another name or move it away")


def merge(records: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The records with `new`: in the place of its like (method, order, seed), else last."""
    key = [new[k] for k in KEY]
    kept = [found if [found[k] for k in KEY] != key else new for found in records]
    return kept if new in kept else [*kept, new]


def write(
    path: Path,
    benchmark: str,
    command: str,
    device: str,
    records: list[dict[str, Any]],
    **more: Any,
) -> None:
    """Write the file whole or not at all; what only one benchmark has to say comes as `more`.

    `device` names the kind of machine only, such as "cpu, 1 thread". Unknown cells are None.
    """
    results = {
        "benchmark": benchmark,
        "command": command,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "device": device,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "records": records,
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
