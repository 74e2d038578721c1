"""Loading the stream of a run: its tasks, in order."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from perdure.config import Config, Mode
from perdure.data.benchmarks import ORDERS, benchmark_task, benchmark_tasks
from perdure.data.generated import TASKS as GENERATED_TASKS
from perdure.data.generated import generated_tasks
from perdure.data.hub import HUB, SPLITS
from perdure.data.opening import GENERATED, file_split, hold_out, open_split
from perdure.data.rows import SUFFIXES
from perdure.data.task import Task
from perdure.errors import PerdureError, nearest
from perdure.places import where_it_goes
from perdure.seeds import derive


__all__ = ["GENERATED", "file_split", "load_stream", "open_split"]

KEYS = ("name", *SPLITS, "hold_out", "benchmark", "metric", "options", "training")


def load_stream(config: Config, splits: Collection[str] = SPLITS) -> list[Task]:
    """Load the tasks that `tasks:` names: `generated`, a benchmark's order, or a list of tasks.

    A task of the list has `train` (and may have `dev` and `test`), each a location that
    `file_split` takes, or it has `benchmark`, the name of one benchmark task. It may also have
    `name`, `metric`, `options`, and `training`, which overrides the run's own `training` for this
    task.

    Args:
        config: the settings of the run.
        splits: the splits to read. Files of other splits are not opened.

    Raises:
        PerdureError: a name or key is unknown, or rows cannot be read.
    """
    if config.tasks is None:
        raise PerdureError(
            "tasks: missing; name a stream (such as generated) or list the tasks' files"
        )
    check_stream(config)
    if isinstance(config.tasks, list):
        return [_task(entry, config, splits) for entry in config.tasks]
    if config.tasks == GENERATED:
        limits = {split: config.rows[split] for split in ("train", "test") if split in config.rows}
        return generated_tasks(**limits, seed=config.seed)  # no files, so `splits` is not needed
    return benchmark_tasks(
        config.tasks,
        data=config.data,
        rows=config.rows,
        seed=config.seed,
        instruction=config.instruction,
        splits=splits,
    )


def task_count(tasks: list[Any] | str) -> int:
    """Return how many tasks a stream has; no file is read."""
    if isinstance(tasks, list):
        return len(tasks)
    return len(GENERATED_TASKS if tasks == GENERATED else ORDERS[tasks])


def stages_of(tasks: Sequence[Task], mode: Mode) -> list[list[Task]]:
    """Return the tasks that each stage of a run learns, the new one last.

    In `sequential` and `per_task` a stage learns one task, in `joint` all tasks so far. `union` has
    a single stage, which learns them all.
    """
    if mode == "union":
        return [list(tasks)]
    if mode == "joint":
        return [list(tasks[: i + 1]) for i in range(len(tasks))]
    return [[task] for task in tasks]


def check_stream(config: Config) -> None:
    """Check the names and keys of `tasks:`, if it is set, without reading any rows.

    Raises:
        PerdureError: a stream or a key is unknown, or the list of tasks is empty.
    """
    if isinstance(config.tasks, str) and config.tasks not in (GENERATED, *ORDERS):
        hint = nearest(config.tasks, [GENERATED, *ORDERS])
        raise PerdureError(f"tasks: no stream is named {config.tasks!r}; {hint}")
    if isinstance(config.tasks, list):
        if not config.tasks:
            raise PerdureError("tasks: the list is empty; give at least one task")
        for entry in config.tasks:
            _check_task(entry)


def _check_task(entry: Any) -> str:
    """Check an entry of the list of tasks, and return the task's name.

    Raises:
        PerdureError: the entry has no rows, an unknown key, or a value of the wrong type.
    """
    has_rows = isinstance(entry, dict) and bool(entry.get("train") or entry.get("benchmark"))
    unknown = [key for key in entry if key not in KEYS] if isinstance(entry, dict) else []
    if not has_rows and not unknown:
        raise PerdureError(
            f"tasks: a task needs its train rows or the name of a benchmark, got {entry!r}"
        )
    named = entry.get("name") or entry.get("benchmark")
    name = str(named or (_default_name(entry["train"]) if has_rows else "without a name"))
    for key in unknown:
        hint = where_it_goes(str(key), "tasks", KEYS)
        raise PerdureError(f"task {name}: unknown key {key!r}; {hint}")
    training = entry.get("training") or {}
    if not isinstance(training, dict):
        raise PerdureError(f"task {name}: training takes a mapping, got {training!r}")
    share = entry.get("hold_out")
    if share is not None and (isinstance(share, bool) or not isinstance(share, int | float)):
        raise PerdureError(f"task {name}: hold_out takes a share such as 0.1, got {share!r}")
    if share is not None and (entry.get("test") or entry.get("benchmark")):
        raise PerdureError(f"task {name}: has test rows of its own; leave out hold_out")
    metric = entry.get("metric")
    if metric is not None and not isinstance(metric, str):
        raise PerdureError(f"task {name}: metric takes the name of one metric, got {metric!r}")
    options = entry.get("options")
    if options is not None and (not isinstance(options, list | tuple) or not options):
        raise PerdureError(f"task {name}: options takes a list of answers, got {options!r}")
    return name


def _task(entry: Any, config: Config, splits: Collection[str]) -> Task:
    name = _check_task(entry)
    fields: dict[str, Any] = {"metric": "exact_match"}
    if entry.get("benchmark"):
        fields = _benchmark(entry, config, name, splits)
    for split in splits:
        if entry.get(split):
            fields[split] = file_split(
                entry[split], limit=config.rows.get(split), seed=config.seed, role=split
            )
    if entry.get("hold_out") is not None:
        seed = derive(config.seed, "held out", name)
        share, where = float(entry["hold_out"]), f"task {name}: hold_out"
        train, test = hold_out(
            fields["train"], share=share, seed=seed, where=where, limit=config.rows.get("test")
        )
        fields |= {"train": train} | ({"test": test} if "test" in splits else {})
    if entry.get("metric"):
        fields["metric"] = entry["metric"]
    if entry.get("options"):
        fields["options"] = tuple(map(str, entry["options"]))
    return Task(name=name, training=entry.get("training") or {}, **fields)


def _benchmark(
    entry: dict[str, Any], config: Config, name: str, splits: Collection[str]
) -> dict[str, Any]:
    """Return the splits, the metric and the options of one benchmark task."""
    for split in SPLITS:
        if entry.get(split):
            raise PerdureError(f"task {name}: a benchmark has its own rows; leave out {split}")
    task = benchmark_task(
        str(entry["benchmark"]),
        data=config.data,
        rows=config.rows,
        seed=config.seed,
        instruction=config.instruction,
        splits=splits,
    )
    return {key: getattr(task, key) for key in (*SPLITS, "metric", "options")}


def _default_name(train: Any) -> str:
    """Name a task after its rows: the dataset, the file, or for `train.jsonl` its folder."""
    place = train.get("hub") or train.get("path") if isinstance(train, dict) else train
    if str(place).startswith(HUB) or (isinstance(train, dict) and train.get("hub")):
        return Path(str(place).removeprefix(HUB).partition(":")[0].partition("@")[0]).name
    path = Path(str(place))
    stem = next((path.name.removesuffix(s) for s in SUFFIXES if path.name.endswith(s)), path.name)
    return path.resolve().parent.name if stem == "train" else stem
