"""How to make a lineage once more: a YAML, and the commands."""

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engram.config import Config
from engram.lineage.lineage import FREE, Lineage, moved


FILE = "again.yaml"
FOLDER = "again"


@dataclass(frozen=True)
class Rerun:
    """`settings` is what to write to FILE; a task made in Python has no command, only a note."""

    settings: str
    commands: tuple[str, ...]


def rerun(lineage: Lineage) -> Rerun:
    """A run is made again by one command, a lineage of single tasks by `init` and `learn`s."""
    settings = yaml.safe_dump(_settings(lineage.config), sort_keys=False, allow_unicode=True)
    if lineage.config.tasks is not None:
        return Rerun(settings, (f"engram run {FILE} lineage={FOLDER}",))
    made = f"engram init {FOLDER} --config {FILE}"
    return Rerun(settings, (made, *(_learn(lineage, entry["task"]) for entry in lineage.stages)))


def _settings(config: Config) -> dict[str, Any]:
    """What is not a default, in the order of the settings' own page."""
    plain = dataclasses.asdict(Config())
    given = {k: v for k, v in config.to_dict().items() if k not in FREE and v != plain[k]}
    for key in ("memory", "general", "scoring"):
        if key in given:
            given[key] = {k: v for k, v in given[key].items() if v != plain[key][k]}
    return {"base": config.base, **given}


def _learn(lineage: Lineage, task: dict[str, Any]) -> str:
    """The command that learned a task from files or from the hub."""
    train, test = (_rows(lineage, task.get(split)) for split in ("train", "test"))
    if train is None or (test is None and "test" in task):
        name = " ".join(task["name"].split())
        return f"# {name}: its rows were made in Python, engram.learn takes them"
    words = ["engram", "learn", FOLDER, task["name"], train]
    words += [f"training.{key}={json.dumps(v)}" for key, v in task.get("training", {}).items()]
    words += ["--test", test] if test else []
    words += ["--metric", task["metric"]] if task["metric"] != "exact_match" else []
    for option in task["options"] or ():
        words += ["--option", option]
    return shlex.join(words)


def _rows(lineage: Lineage, split: dict[str, Any] | None) -> str | None:
    """A split as it is typed; a path as seen from here, as the YAML's are."""
    source = (split or {}).get("source") or {}
    if "hub" in source:
        return f"hub:{source['hub']}:{source['split']}"
    return moved(source["path"], lineage.path, Path.cwd()) if "path" in source else None
