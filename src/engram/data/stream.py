"""The stream of a run: its tasks in order, and a split made again from where its rows came from."""

from pathlib import Path
from typing import Any

from engram.config import Config
from engram.data.benchmarks import ORDERS, benchmark_split, benchmark_tasks
from engram.data.generated import generated_rows, generated_tasks
from engram.data.rows import read_rows
from engram.data.task import Split, Task, limit_rows
from engram.errors import EngramError, nearest


GENERATED = "generated"
KEYS = ("name", "train", "dev", "test", "metric", "options")


def load_stream(config: Config) -> list[Task]:
    """The tasks that `tasks:` names: `generated`, a benchmark's order, or a list of files.

    Raises:
        EngramError: an unknown name or key, or rows that cannot be read.
    """
    if config.tasks is None:
        raise EngramError(
            "tasks: missing; name a stream (such as generated) or list the tasks' files"
        )
    if isinstance(config.tasks, list):
        tasks = [_task(given, config) for given in config.tasks]
        if not tasks:
            raise EngramError("tasks: the list is empty; give at least one task")
        return tasks
    if config.tasks == GENERATED:
        return generated_tasks(**config.rows, seed=config.seed)
    if config.tasks not in ORDERS:
        known = nearest(config.tasks, [GENERATED, *ORDERS])
        raise EngramError(f"tasks: no stream is named {config.tasks!r}; {known}")
    return benchmark_tasks(
        config.tasks, config.data, config.rows, config.seed, instruction=config.instruction
    )


def _task(given: Any, config: Config) -> Task:
    if not isinstance(given, dict) or "name" not in given or "train" not in given:
        raise EngramError(f"tasks: a task needs a name and a train file, got {given!r}")
    for key in given:
        if key not in KEYS:
            raise EngramError(f"task {given['name']}: unknown key {key!r}; {nearest(key, KEYS)}")
    splits = {
        split: file_split(given[split], config.rows.get(split), config.seed)
        for split in ("train", "dev", "test")
        if given.get(split)
    }
    options = tuple(map(str, given["options"])) if given.get("options") else None
    metric = given.get("metric", "exact_match")
    return Task(name=str(given["name"]), metric=metric, options=options, **splits)


def file_split(path: str | Path, limit: int | None, seed: int) -> Split:
    """The rows of a file, all or `limit` of them drawn with the seed."""
    return open_split({"path": str(path), "limit": limit, "seed": seed})


def open_split(source: dict[str, Any], data: str | Path | None = None) -> Split:
    """The split that `source` describes; `data` is the benchmarks' folder (else ENGRAM_DATA).

    Raises:
        EngramError: the file or folder is gone, or nothing of this source is known.
    """
    if "benchmark" in source:
        settings = {key: value for key, value in source.items() if key != "benchmark"}
        return benchmark_split(source["benchmark"], data=data, **settings)
    if source.get("stream") == GENERATED:
        settings = {key: value for key, value in source.items() if key != "stream"}
        return Split(tuple(generated_rows(**settings)), source)
    if "path" not in source:
        raise EngramError(
            f"no rows can be opened from {source}: expected path, benchmark or stream"
        )
    rows = limit_rows(read_rows(source["path"]), source.get("limit"), source.get("seed", 0))
    return Split(tuple(rows), source)
