"""Reading, merging and writing result files, which share one format. torch is not imported.

{"benchmark", "command", "versions", "device", "date", "records": [{"method", "order", "seed",
"overall", "backward_transfer", "forward_transfer", "seconds", "seconds_scoring", ...}]}
"""

import json
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from perdure.errors import PerdureError
from perdure.lineage.experts import experts_folder, merge_rule
from perdure.lineage.files import write_text
from perdure.lineage.lineage import Lineage
from perdure.lineage.settings import text
from perdure.measure.matrix import backward_transfer, forward_transfer, overall
from perdure.parsing import read_json


KEY = ("method", "order", "seed")  # the keys that every record has
IDENTITY = (*KEY, "lineage")  # those that identify it
PACKAGES = ("perdure", "torch", "transformers", "peft")


def method_name(method: Any, mode: str = "sequential") -> str:
    """Return the name of a method in a record.

    A preset is appended to the method's name, and several methods are joined by `+`. A mode other
    than sequential replaces the method's name.

    Raises:
        PerdureError: it is not the name of a method, a mapping of its keywords, or a list of these.
    """
    if mode != "sequential":
        return mode
    names = []
    for name, keywords in _parts(method):
        preset = keywords.get("preset")
        names.append(f"{name}_{preset}" if preset else name)
    return "+".join(names)


def method_in_words(method: Any, mode: str = "sequential") -> str:
    """Return a method with the keywords that were set: `replay (ratio 0.5) + kl_base`.

    A mode other than sequential replaces it.

    Raises:
        PerdureError: see `method_name`.
    """
    if mode != "sequential":
        return mode
    words = []
    for name, keywords in _parts(method):
        values = ", ".join(f"{keyword} {text(value)}" for keyword, value in keywords.items())
        words.append(f"{name} ({values})" if values else name)
    return " + ".join(words)


def _parts(method: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each method and its keywords.

    Raises:
        PerdureError: it is not the name of a method, a mapping of its keywords, or a list of these.
    """
    for part in method if isinstance(method, list) else [method]:
        if not isinstance(part, str | dict):
            raise PerdureError(f"method: expected a name such as replay, got {str(part)[:50]!r}")
        for name, keywords in (part if isinstance(part, dict) else {part: {}}).items():
            if keywords is not None and not isinstance(keywords, dict):
                raise PerdureError(
                    f"method: {name} takes a mapping of its keywords, got {str(keywords)[:50]!r}"
                )
            yield str(name), keywords or {}


def method_of(lineage: Lineage) -> str:
    """Return the name of a lineage's method; of several, one after the other, all names."""
    names = [method_name(entry["method"], entry["mode"]) for entry in lineage.stages]
    config = lineage.config
    if config.merge is not None:
        names = [
            f"per_task merged by {merge_rule(config.merge)}" if name == "merged" else name
            for name in names
        ]
    return " then ".join(dict.fromkeys(names)) or method_name(config.method, config.mode)


def order_name(tasks: Any) -> str:
    """Return the name of the setting `tasks:` in a record.

    Raises:
        PerdureError: a task of a list is not a mapping.
    """
    if isinstance(tasks, list):
        if wrong := [task for task in tasks if not isinstance(task, dict)]:
            raise PerdureError(
                f"tasks: a task is a mapping with train or benchmark, got {str(wrong[0])[:50]!r}"
            )
        return "+".join(str(task.get("name") or task.get("benchmark")) for task in tasks)
    return str(tasks)


def record(lineage: Lineage, command: str) -> dict[str, Any]:
    """Return the record of a run by `command`; seconds are summed over its stages."""
    config, matrix = lineage.config, lineage.matrix()
    seconds = [s for part in with_experts(lineage) for s in stage_seconds(part).values()]
    return {
        "method": method_of(lineage),
        "order": order_name(config.tasks),
        "seed": config.seed,
        "overall": overall(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(matrix),
        "seconds": round(sum(s["learning"] for s in seconds), 2),
        "seconds_scoring": round(sum(s["scoring"] for s in seconds), 2),
        "lineage": str(lineage.path),
        "command": command,
    }


def with_experts(lineage: Lineage) -> list[Lineage]:
    """Return a lineage, with that of the experts that a run has merged in it, if there is one."""
    experts = experts_folder(lineage.path, lineage.config.merge)
    has_experts = lineage.config.merge is not None and (experts / "lineage.yaml").is_file()
    return [Lineage(experts), lineage] if has_experts else [lineage]


def stage_seconds(lineage: Lineage) -> dict[int, dict[str, float]]:
    """Return for each stage the seconds of learning (preparing and training) and of scoring."""
    times, by_stage = lineage.timings(), {}
    for entry in lineage.stages:
        seconds = times.get(str(entry["stage"]), {}).get("seconds", {})
        learning = seconds.get("prepare", 0.0) + seconds.get("train", 0.0)
        by_stage[entry["stage"]] = {"learning": learning, "scoring": seconds.get("score", 0.0)}
    return by_stage


def device(threads: int | None) -> str:
    """Return the kind of machine, as it is named in result files."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {threads} threads" if threads != 1 else "cpu, 1 thread"


def load(path: Path) -> list[dict[str, Any]]:
    """Read the records of a result file; there are none if the file does not exist yet.

    Raises:
        PerdureError: the file is not a result file.
    """
    if not path.exists():
        return []
    try:
        records = read_json(path)["records"]
        if all(set(KEY) <= set(record) for record in records):
            return records
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise PerdureError(
        f"{path}: not a result file; use another name for --results or move the file away"
    )


def merge(records: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records with `new`, which replaces the one of the same lineage or comes last."""
    new_key = [new.get(k) for k in IDENTITY]
    merged = [new if [old.get(k) for k in IDENTITY] == new_key else old for old in records]
    return merged if new in merged else [*merged, new]


def write(
    path: Path,
    benchmark: str,
    command: str,
    device: str,
    records: list[dict[str, Any]],
    **more: Any,
) -> None:
    """Write a result file atomically; `more` are keys that only one benchmark has.

    `device` names only the kind of machine, such as "cpu, 1 thread". Unknown cells are None.
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
