"""A task in the ledger, and its rows when they are wanted again."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perdure.config import Config
from perdure.data.rows import Row, read_rows
from perdure.data.stream import file_split, open_split
from perdure.data.task import Split, Task
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.models.layout import MEMORY
from perdure.seeds import derive


def describe(lineage: Lineage, task: Task, name: str) -> dict[str, Any]:
    """A task in the ledger: where its rows come from, their number and their sha256."""
    described: dict[str, Any] = {
        "id": name,
        "name": task.name,
        "metric": task.metric,
        "options": list(task.answers() or ()) or None,
    }
    if task.training:
        described["training"] = task.training
    for split in ("train", "test"):
        rows: Split | None = getattr(task, split)
        if rows is not None:
            described[split] = describe_split(lineage, rows)
    return described


def describe_split(lineage: Lineage, rows: Split) -> dict[str, Any]:
    """A split in the ledger."""
    source = dict(rows.source) if rows.source else None
    if source and "path" in source:  # so that a lineage and its data can move together
        source["path"] = os.path.relpath(source["path"], lineage.path)
    return {"source": source, "rows": len(rows.rows), "sha256": rows.sha256}


def general_rows(config: Config, task: Task, stage: int) -> Split:
    """The rows of general use that a stage takes into its memory."""
    count = max(1, round(config.general.ratio * len(task.train.rows)))
    return file_split(config.general.file, count, derive(config.seed, "general", stage))


def reopen(
    lineage: Lineage, described: dict[str, Any], data: str | Path | None, say: Callable[[str], None]
) -> Task | None:
    """The task of a ledger line with the test rows it was scored on.

    None, and a warning, if they are gone.
    """
    test = described.get("test")
    if test is None:
        return None
    source = dict(test["source"] or {})
    if "path" in source:
        source["path"] = str(lineage.path / source["path"])
    try:
        split = open_split(source, data)
    except PerdureError as error:
        say(f"warning: {described['id']} is not scored: {error}")
        return None
    if split.sha256 != test["sha256"]:
        say(f"warning: {described['id']} is not scored: its test rows have changed")
        return None
    options = tuple(described["options"]) if described["options"] else None
    return Task(described["name"], Split(()), None, split, described["metric"], options)


def remembered(lineage: Lineage, entry: dict[str, Any]) -> list[Row]:
    path = lineage.folder(entry) / MEMORY
    return read_rows(path) if path.exists() and path.stat().st_size else []
