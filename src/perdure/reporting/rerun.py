"""How to reproduce a lineage: a YAML of its settings, and the commands."""

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from perdure.config import DEFAULT_TRAINING, TOGETHER, Config, filled_adapter
from perdure.lineage.lineage import Lineage
from perdure.lineage.settings import FREE, command, loaded, moved


FILE = "again.yaml"
FOLDER = "again"


@dataclass(frozen=True)
class Rerun:
    """The settings to write to FILE, and the commands to run.

    For a task whose rows were passed in Python, there is a comment instead of a command.
    """

    settings: str
    commands: tuple[str, ...]


def rerun(lineage: Lineage) -> Rerun:
    """Return how to reproduce a lineage: one `run`, or `init` and one `learn` for each task.

    If settings were changed, it is the latter, with each `set` in its place.
    """
    changed = [entry for entry in lineage.ledger if "changed" in entry]
    as_run = lineage.config.tasks is not None and (lineage.config.mode in TOGETHER or not changed)
    first = lineage.settings_at(1)
    config = loaded(first, lineage.pin, lineage.path) if first and not as_run else lineage.config
    kept = _settings(config) if as_run else {**_settings(config), **_chosen_by_init(config)}
    settings = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
    if as_run:
        return Rerun(settings, (f"perdure run {FILE} lineage={FOLDER}",))
    init = f"perdure init {FOLDER} --config {FILE}"
    steps = []
    for entry in lineage.ledger:
        if entry in changed:
            steps.append(command(Path(FOLDER), entry["settings"], entry["changed"]))
        elif entry["verb"] == "adopt" and entry in lineage.stages:
            name = " ".join(entry["task"]["name"].split())
            steps.append(
                f"# {name}: adopted; perdure adopt {FOLDER} CHECKPOINT {shlex.quote(name)}"
            )
        elif entry in lineage.stages:
            steps.append(_learn(lineage, entry["task"]))
    return Rerun(settings, (init, *steps))


def _settings(config: Config) -> dict[str, Any]:
    """Return the settings that are not defaults, in the order of `Config`."""
    defaults = dataclasses.asdict(Config())
    changed = {k: v for k, v in config.to_dict().items() if k not in FREE and v != defaults[k]}
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
        "training": {**DEFAULT_TRAINING, **config.training},
        "memory": dataclasses.asdict(config.memory),
        "adapter": adapter,
    }


def _learn(lineage: Lineage, task: dict[str, Any]) -> str:
    """Return the command that learns a task from files or from the hub."""
    splits = ("train", "dev", "test")
    train, dev, test = (_rows(lineage, task.get(split)) for split in splits)
    if train is None or (dev is None and "dev" in task) or (test is None and "test" in task):
        name = " ".join(task["name"].split())
        return f"# {name}: its rows were passed in Python; pass them to perdure.learn"
    words = ["perdure", "learn", FOLDER, task["name"], train]
    words += [f"training.{key}={json.dumps(v)}" for key, v in task.get("training", {}).items()]
    held_out = ((task["train"].get("source") or {}).get("held_out") or {}).get("share")
    if held_out:
        words += ["--hold-out", f"{held_out:g}"]
    elif test:
        words += ["--test", test]
    words += ["--dev", dev] if dev else []
    words += ["--metric", task["metric"]] if task["metric"] != "exact_match" else []
    for option in task["options"] or ():
        words += ["--option", option]
    return shlex.join(words)


def _rows(lineage: Lineage, split: dict[str, Any] | None) -> str | None:
    """Return the rows of a split as an argument; paths are relative to the working directory."""
    source = (split or {}).get("source") or {}
    if "hub" in source:
        return f"hub:{source['hub']}:{source['split']}"
    return moved(source["path"], lineage.path, Path.cwd()) if "path" in source else None
