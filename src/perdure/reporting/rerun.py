"""How to reproduce a lineage: a YAML of its settings, and the commands."""

import dataclasses
import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from perdure.config import DEFAULT_TRAINING, TOGETHER, Config, filled_adapter
from perdure.data.benchmarks import ORDERS
from perdure.data.generated import TASKS as GENERATED_TASKS
from perdure.data.hub import HUB, SPLITS, address
from perdure.data.stream import GENERATED, task_count
from perdure.lineage.lineage import Lineage
from perdure.lineage.settings import FREE, command, loaded, moved
from perdure.lineage.sources import source_of


FILE = "again.yaml"
FOLDER = "again"
# What a lineage without the key has learned in; `init` would choose another order.
RANDOM_ORDER = {"train_sampling_strategy": "random"}


@dataclass(frozen=True)
class Rerun:
    """The settings to write to FILE, and the commands to run.

    For a task whose rows were passed in Python, or are read by `run` alone, there is a comment
    instead of a command.
    """

    settings: str
    commands: tuple[str, ...]


def rerun(lineage: Lineage) -> Rerun:
    """Return how to reproduce a lineage: `run` or `init`, and the later verbs in their order.

    A stream that was run is one `run`, and what was added to it follows. If settings were changed,
    or the stages have learned other tasks than the stream's first ones, it is `init` and one
    `learn` for each task, with each `set` in its place.
    """
    changed = [entry for entry in lineage.ledger if "changed" in entry]
    tasks, mode = lineage.config.tasks, lineage.config.mode
    as_run = tasks is not None and (
        mode in TOGETHER or (not changed and _has_followed(lineage, tasks))
    )
    first = lineage.settings_at(1)
    config = loaded(first, lineage.pin, lineage.path) if first and not as_run else lineage.config
    kept = _settings(config) if as_run else {**_settings(config), **_chosen_by_init(config)}
    settings = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
    stages = lineage.stages
    if tasks is not None and as_run:
        commands = [f"perdure run {FILE} lineage={FOLDER}"]
        stages = [] if mode in TOGETHER else stages[task_count(tasks) :]
    else:
        commands = [f"perdure init {FOLDER} --config {FILE}"]
    for entry in lineage.ledger:
        if entry in changed and not as_run:
            commands.append(command(Path(FOLDER), entry["settings"], entry["changed"]))
        elif entry in stages:
            if entry["verb"] == "learn":
                commands.append(_learn(lineage, entry["task"]))
            else:
                commands.append(_from_elsewhere(lineage, entry))
    return Rerun(settings, tuple(commands))


def _has_followed(lineage: Lineage, tasks: list[Any] | str) -> bool:
    """Return whether the active stages have learned the first tasks of a stream, in its order.

    No rows are read: names and sources are compared.
    """
    if isinstance(tasks, list):
        stream = tasks
    elif tasks == GENERATED:
        stream = [{"name": name, "stream": GENERATED} for name in GENERATED_TASKS]
    else:
        stream = [{"benchmark": name} for name in ORDERS[tasks]]
    return all(
        _is_of(lineage, entry, task) for entry, task in zip(lineage.stages, stream, strict=False)
    )


def _is_of(lineage: Lineage, entry: dict[str, Any], task: dict[str, Any]) -> bool:
    """Return whether a stage has learned a task of a stream.

    Args:
        lineage: the lineage.
        entry: the ledger's line of the stage.
        task: the task: an entry of the list of tasks, or one with `name` and `stream`.
    """
    described, config = entry["task"], lineage.config
    name = task.get("name") or task.get("benchmark")
    if name is not None and str(name) != described["name"]:
        return False
    if config.merge is not None:  # its experts have learned the rows
        return entry["verb"] == "merge"
    if entry["verb"] != "learn" or (task.get("training") or {}) != described.get("training", {}):
        return False
    sources = {s: described[s].get("source") or {} for s in SPLITS if s in described}
    for kind in ("stream", "benchmark"):
        if kind in task:
            return sources["train"].get(kind) == task[kind]
    if described["metric"] != (task.get("metric") or "exact_match"):
        return False
    is_held_out = task.get("hold_out") is not None
    for split in ("train", "test"):
        location = task["train"] if is_held_out else task.get(split)
        source = sources.get(split)
        if not location or source is None:
            if location or source is not None:
                return False
            continue
        limit = config.rows.get("train" if is_held_out else split)
        share = (source.get("held_out") or {}).get("share")
        if source.get("limit") != limit or share != task.get("hold_out"):
            return False
        if not _is_at(location, source, lineage.path, split):
            return False
    return True


def _is_at(location: Any, source: dict[str, Any], folder: Path, split: str) -> bool:
    """Return whether the rows of a source are those of a location in the list of tasks.

    Args:
        location: a path, `hub:...`, or a mapping with one of them.
        source: the source in the ledger, whose path is relative to the lineage.
        folder: the lineage's folder.
        split: the name of the split.
    """
    keys = dict(location) if isinstance(location, dict) else {}
    place = str(keys.pop("hub", None) or keys.pop("path", None) or location)
    if place.startswith(HUB) or "hub" in (location if isinstance(location, dict) else ()):
        keys = {**address(place, split), **keys}
    elif "path" not in source or not _is_same(place, source["path"], folder):
        return False
    return all(source.get(key) == value for key, value in keys.items() if value is not None)


def _is_same(place: str, path: str, folder: Path) -> bool:
    """Return whether a path in the settings is that of a source.

    A relative one is relative to the working directory of the run, which is not known, and an
    absolute one may be from before the lineage and its rows were moved together. So the ends of the
    paths are compared.

    Args:
        place: the path in the settings.
        path: the source's path, relative to the lineage or absolute.
        folder: the lineage's folder.
    """
    here, there = os.path.abspath(place), os.path.abspath(folder / path)
    if os.path.isabs(place):
        return here == there or _ends_with(here, path)
    return _ends_with(there, place)


def _ends_with(whole: str, end: str) -> bool:
    parts = [part for part in Path(os.path.normpath(end)).parts if part != ".."]
    return list(Path(whole).parts[-len(parts) :]) == parts


def _settings(config: Config) -> dict[str, Any]:
    """Return the settings that are not defaults, in the order of `Config`."""
    defaults = dataclasses.asdict(Config())
    changed = {k: v for k, v in config.to_dict().items() if k not in FREE and v != defaults[k]}
    if config.merge is not None:  # its lineage is that of the merged stages (`prepare.merged`)
        changed["mode"] = "per_task"
    for section in ("memory", "general", "scoring", "guard", "gate"):
        if changed.get(section):
            values = changed[section].items()
            changed[section] = {k: v for k, v in values if v != defaults[section][k]}
    return {"base": config.base, **changed}


def _chosen_by_init(config: Config) -> dict[str, Any]:
    """Return the settings that `init` would choose if they were left out, defaults or not."""
    adapter = filled_adapter(config.adapter)
    is_lora = adapter is not None and str(adapter.get("peft_type", "LORA")).upper() == "LORA"
    if adapter is not None and is_lora and "target_parameters" not in adapter:
        adapter = {"target_modules": None, **adapter}  # None: the layers that PEFT chooses
    return {
        "method": config.method,
        "training": {**DEFAULT_TRAINING, **RANDOM_ORDER, **config.training},
        "memory": dataclasses.asdict(config.memory),
        "adapter": adapter,
    }


def _learn(lineage: Lineage, task: dict[str, Any]) -> str:
    """Return the command that learns a task from files or from the hub."""
    splits = _splits(lineage, task)
    if splits is None or "train" not in splits:
        name = " ".join(task["name"].split())
        source = task.get("train", {}).get("source") or {}
        if "benchmark" in source or "stream" in source:
            where = source.get("benchmark") or f"stream {source['stream']}"
            return f"# {name}: its rows are those of {where}, which only `perdure run` reads"
        return f"# {name}: its rows were passed in Python; pass them to perdure.learn"
    words = ["perdure", "learn", FOLDER, task["name"], splits.pop("train")]
    words += [f"training.{key}={json.dumps(v)}" for key, v in task.get("training", {}).items()]
    return shlex.join([*words, *_options(task, splits)])


def _from_elsewhere(lineage: Lineage, entry: dict[str, Any]) -> str:
    """Return the command that adopts or merges a checkpoint, as a comment without its folder."""
    task = entry["task"]
    name = " ".join(task["name"].split())
    if "undone" in entry:
        numbers = [stage["stage"] for stage in lineage.stages]
        undone = str(1 + numbers.index(entry["undone"]))  # there are no reverted stages then
        words = ["perdure", "merge", FOLDER, "CHECKPOINT", "--undo", undone]
        return f"# {name}: taken out; {shlex.join(words)}"
    words = ["perdure", "adopt", FOLDER, "CHECKPOINT", name]
    if entry["verb"] == "merge":
        rule, values = next(iter(entry["rule"].items()))
        words = ["perdure", "merge", FOLDER, "CHECKPOINT", "--rule", rule, "--name", name]
        words += [f"rule.{key}={json.dumps(value)}" for key, value in values.items()]
        pairs = [pair for one in entry.get("after", ()) for pair in one.items()]
        for treatment, own in pairs:
            words += ["--after", treatment]
            words += [f"after.{treatment}.{key}={json.dumps(v)}" for key, v in own.items()]
        words += ["--vocabulary", "base"] if "vocabulary" in entry else []
        words += [] if entry["weight"] is None else ["--weight", f"{entry['weight']:g}"]
    splits = _splits(lineage, task)
    ending = "; its rows were passed in Python" if splits is None else ""
    made = "adopted" if entry["verb"] == "adopt" else "merged"
    return f"# {name}: {made}; {shlex.join([*words, *_options(task, splits or {})])}{ending}"


def _splits(lineage: Lineage, task: dict[str, Any]) -> dict[str, str] | None:
    """Return each split's rows as an argument, None if some of them were passed in Python."""
    present = [name for name in ("train", "dev", "test") if task.get(name, {}).get("rows")]
    splits = {name: _rows(lineage, task[name]) for name in present}
    named = {name: rows for name, rows in splits.items() if rows is not None}
    return named if len(named) == len(splits) else None


def _options(task: dict[str, Any], splits: dict[str, str]) -> list[str]:
    """Return the options for a task's rows, metric and closed answers."""
    train = task.get("train") or {}
    held_out = ((train.get("source") or {}).get("held_out") or {}).get("share")
    words = []
    if "train" in splits:
        words += ["--train", splits["train"]]
    if held_out:
        words += ["--hold-out", f"{held_out:g}"]
    elif "test" in splits:
        words += ["--test", splits["test"]]
    if "dev" in splits:
        words += ["--dev", splits["dev"]]
    if task["metric"] != "exact_match":
        words += ["--metric", task["metric"]]
    for option in task["options"] or ():
        words += ["--option", option]
    return words


def _rows(lineage: Lineage, split: dict[str, Any]) -> str | None:
    """Return the rows of a split as an argument; paths are relative to the working directory."""
    source = split.get("source") or {}
    if "hub" in source:
        return f"hub:{source_of(lineage, split)['hub']}:{source['split']}"
    return moved(source["path"], lineage.path, Path.cwd()) if "path" in source else None
