"""How the ledger describes a task, and how the task's rows are read again from it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from perdure.config import Config
from perdure.data.columns import is_chat
from perdure.data.rows import Row, read_rows, write_rows
from perdure.data.stream import file_split, open_split
from perdure.data.task import Split, Task
from perdure.errors import PerdureError
from perdure.lineage.files import relative
from perdure.lineage.lineage import Lineage
from perdure.measure.custom_metric import is_custom, metric_source
from perdure.measure.known_metrics import is_known
from perdure.models.layout import MEMORY
from perdure.seeds import derive


def describe(lineage: Lineage, task: Task, name: str) -> dict[str, Any]:
    """Return a task's description in the ledger: the source, number and sha256 of its rows.

    `chat` is there if train rows are conversations, which are written with the chat template, and
    `system` if some of these begin with a system prompt.
    """
    described: dict[str, Any] = {
        "id": name,
        "name": task.name,
        "metric": task.metric,
        "options": list(task.answers() or ()) or None,
    }
    if any(is_chat(row) for row in task.train.rows):
        described["chat"] = True
    if any(_has_system(row) for row in task.train.rows):
        described["system"] = True
    if is_custom(task.metric):
        described["metric_source"] = metric_source(task.metric)
    if task.training:
        described["training"] = task.training
    for split in ("train", "dev", "test"):
        rows: Split | None = getattr(task, split)
        if rows is not None:
            described[split] = describe_split(lineage, rows)
    return described


def _has_system(row: Row) -> bool:
    """Return whether a row is a conversation that begins with a system prompt."""
    messages = row.get("messages") or row.get("prompt")
    return is_chat(row) and bool(messages) and messages[0]["role"] == "system"


def describe_split(lineage: Lineage, rows: Split) -> dict[str, Any]:
    """Return the description of a split in the ledger."""
    source = dict(rows.source or {})
    for key in _places(source):  # relative, so that a lineage and its data can move together
        source[key] = relative(source[key], lineage.path)
        if key == "hub" and not source[key].startswith("."):
            source[key] = f"./{source[key]}"
    return {"source": source or None, "rows": len(rows.rows), "sha256": rows.sha256}


def source_of(lineage: Lineage, described: dict[str, Any]) -> dict[str, Any]:
    """Return the source of a described split, with paths as they are from the working directory."""
    source = dict(described["source"] or {})
    for key in _places(source):
        place = lineage.path / source[key]
        if key == "path" or place.is_dir():
            source[key] = str(place)
    return source


def _places(source: dict[str, Any]) -> list[str]:
    """Return the keys of a source that hold paths: a file's, and a local dataset's such as ./rows.

    A dataset OWNER/NAME is one on the hub, or the copy of it in the working directory.
    """
    is_folder = str(source.get("hub")).startswith((".", "/"))
    return [key for key in ("path", "hub") if key in source and (key == "path" or is_folder)]


def to_keep(task: Task) -> dict[str, Split]:
    """Return the test and dev rows that no file has, because they were given in Python."""
    splits = {"test": task.test, "dev": task.dev}
    return {name: rows for name, rows in splits.items() if rows and rows.source is None}


def with_kept_rows(task: Task, folder: Path) -> Task:
    """Return a task whose test and dev rows are all in files: those of `to_keep` in a folder."""
    kept = {}
    for name, rows in to_keep(task).items():
        source = {"path": str(folder / f"{name}.jsonl"), "limit": None, "seed": 0}
        kept[name] = replace(rows, source=source)
    return replace(task, **kept)


def write_kept_rows(task: Task, folder: Path) -> None:
    """Write the rows of `to_keep`, so that later stages can be scored on them."""
    for name, rows in to_keep(task).items():
        write_rows(folder / f"{name}.jsonl", rows.rows)


def general_rows(config: Config, task: Task, stage: int) -> Split:
    """Draw the general rows that a stage rehearses."""
    count = max(1, round(config.general.ratio * len(task.train.rows)))
    return file_split(config.general.file, count, derive(config.seed, "general", stage))


def reopen(
    lineage: Lineage,
    described: dict[str, Any],
    data: str | Path | None,
    say: Callable[[str], None],
    opened: Task | None = None,
    alone: bool = False,
) -> Task | None:
    """Return the task of a ledger line, with the test rows on which it was scored.

    Returns None, after a warning, if these rows are missing or have changed, or if the task's own
    metric has.

    Args:
        lineage: the lineage.
        described: the task in the ledger.
        data: the folder with the benchmarks' rows.
        say: called with each warning.
        opened: the task, if its rows are in memory.
        alone: whether the scores are not compared with earlier ones, so that a metric that has
            changed is used as it is now, after a warning.
    """
    split = opened.test if opened else reopen_rows(lineage, described, data, say)
    if split is None:
        return opened
    stored = described.get("test")
    if stored and split.sha256 != stored["sha256"]:
        say(f"warning: {described['id']} is not scored: its test rows have changed")
        return None
    if change := _metric_change(described):
        metric, reason, usable = described["metric"], *change
        if not (alone and usable):
            say(f"warning: {described['id']} is not scored: metric {metric} {reason}")
            return None
        say(f"warning: {described['id']} is scored by a metric, {metric}, that {reason}")
    if opened:
        return opened
    options = tuple(described["options"]) if described["options"] else None
    return Task(
        described["name"],
        train=Split(()),
        test=split,
        metric=described["metric"],
        options=options,
    )


def _metric_change(described: dict[str, Any]) -> tuple[str, bool] | None:
    """Return how a task's own metric has changed, and whether it can be used; None if not."""
    metric, source = described["metric"], described.get("metric_source")
    if not is_custom(metric):
        return None
    if not is_known(metric, source):
        hint = f"PERDURE_METRICS={metric} in the environment runs it"
        return f"is code that only the ledger names; if you trust it, {hint}", False
    try:
        same = metric_source(metric) == source
    except PerdureError as error:
        return f"cannot be used any more ({error})", False
    return None if same else ("has changed since the task was learned", True)


def reopen_rows(
    lineage: Lineage,
    described: dict[str, Any],
    data: str | Path | None,
    say: Callable[[str], None],
    split: Literal["test", "dev"] = "test",
) -> Split | None:
    """Return the test or dev rows of a ledger line.

    Returns None if there are none, and after a warning if they are not the same.
    """
    stored = described.get(split)
    if stored is None:
        return None
    source = source_of(lineage, stored)
    what = f"warning: {described['id']} is not scored{' on its dev rows' * (split == 'dev')}"
    try:
        rows = open_split(source, data)
    except PerdureError as error:
        say(f"{what}: {error}")
        return None
    if rows.sha256 != stored["sha256"]:
        say(f"{what}: its {split} rows have changed")
        return None
    return rows


def remembered(lineage: Lineage, entry: dict[str, Any]) -> list[Row]:
    """Return the rows that a stage keeps for rehearsal."""
    path = lineage.file(entry, MEMORY)
    return read_rows(path) if path and path.stat().st_size else []
