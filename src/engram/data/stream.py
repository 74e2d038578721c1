"""The stream of a run: its tasks in order."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from engram.config import Config
from engram.data.benchmarks import ORDERS, benchmark_task, benchmark_tasks
from engram.data.generated import generated_tasks
from engram.data.hub import HUB, SPLITS
from engram.data.opening import GENERATED, file_split, open_split
from engram.data.rows import SUFFIXES
from engram.data.task import Task
from engram.errors import EngramError, nearest
from engram.places import where_it_goes


__all__ = ["GENERATED", "file_split", "load_stream", "open_split"]

KEYS = ("name", *SPLITS, "benchmark", "metric", "options", "training")


def load_stream(config: Config, splits: Collection[str] = SPLITS) -> list[Task]:
    """The tasks that `tasks:` names: `generated`, a benchmark's order, or a list of tasks.

    A task of the list has `train` (and `dev`, `test`) with what `file_split` takes, or `benchmark`
    with the name of one benchmark task; and `name`, `metric`, `options` and `training`, which
    overrides the run's own `training` for this task. Of other splits than `splits` no file is
    opened.

    Raises:
        EngramError: an unknown name or key, or rows that cannot be read.
    """
    if config.tasks is None:
        raise EngramError(
            "tasks: missing; name a stream (such as generated) or list the tasks' files"
        )
    check_stream(config)
    if isinstance(config.tasks, list):
        return [_task(given, config, splits) for given in config.tasks]
    if config.tasks == GENERATED:
        limits = {split: config.rows[split] for split in ("train", "test") if split in config.rows}
        return generated_tasks(**limits, seed=config.seed)  # which has no files
    settings = (config.data, config.rows, config.seed, config.instruction, splits)
    return benchmark_tasks(config.tasks, *settings)


def check_stream(config: Config) -> None:
    """What can be wrong with `tasks:` whatever its rows are: names and keys, if there are tasks.

    Raises:
        EngramError: an unknown stream or key, or no tasks.
    """
    if isinstance(config.tasks, str) and config.tasks not in (GENERATED, *ORDERS):
        known = nearest(config.tasks, [GENERATED, *ORDERS])
        raise EngramError(f"tasks: no stream is named {config.tasks!r}; {known}")
    if isinstance(config.tasks, list):
        if not config.tasks:
            raise EngramError("tasks: the list is empty; give at least one task")
        for given in config.tasks:
            _check_task(given)


def _check_task(given: Any) -> str:
    """The name of a task of the list.

    Raises:
        EngramError: it has no rows, or an unknown key.
    """
    if not isinstance(given, dict) or not (given.get("train") or given.get("benchmark")):
        raise EngramError(
            f"tasks: a task needs its train rows or the name of a benchmark, got {given!r}"
        )
    name = str(given.get("name") or given.get("benchmark") or _default_name(given["train"]))
    for key in given:
        if key not in KEYS:
            hint = where_it_goes(str(key), "tasks", KEYS)
            raise EngramError(f"task {name}: unknown key {key!r}; {hint}")
    training = given.get("training") or {}
    if not isinstance(training, dict):
        raise EngramError(f"task {name}: training takes a mapping, got {training!r}")
    options = given.get("options")
    if options is not None and (not isinstance(options, list | tuple) or not options):
        raise EngramError(f"task {name}: options takes a list of answers, got {options!r}")
    return name


def _task(given: Any, config: Config, splits: Collection[str]) -> Task:
    name = _check_task(given)
    training = given.get("training") or {}
    made: dict[str, Any] = {"metric": "exact_match"}
    if given.get("benchmark"):
        made = _benchmark(given, config, name, splits)
    for split in splits:
        if given.get(split):
            made[split] = file_split(given[split], config.rows.get(split), config.seed, split)
    if given.get("metric"):
        made["metric"] = given["metric"]
    if given.get("options"):
        made["options"] = tuple(map(str, given["options"]))
    return Task(name=name, training=training, **made)


def _benchmark(
    given: dict[str, Any], config: Config, name: str, splits: Collection[str]
) -> dict[str, Any]:
    """Splits, metric and options of one benchmark task."""
    for split in SPLITS:
        if given.get(split):
            raise EngramError(f"task {name}: benchmark brings its own rows; leave out {split}")
    settings = (config.data, config.rows, config.seed, config.instruction, splits)
    task = benchmark_task(str(given["benchmark"]), *settings)
    return {key: getattr(task, key) for key in (*SPLITS, "metric", "options")}


def _default_name(train: Any) -> str:
    """What the rows are called: the dataset, the file, or for `train.jsonl` its folder."""
    place = train.get("hub") or train.get("path") if isinstance(train, dict) else train
    if str(place).startswith(HUB) or (isinstance(train, dict) and train.get("hub")):
        return Path(str(place).removeprefix(HUB).partition(":")[0].partition("@")[0]).name
    path = Path(str(place))
    stem = next((path.name.removesuffix(s) for s in SUFFIXES if path.name.endswith(s)), path.name)
    return path.resolve().parent.name if stem == "train" else stem
