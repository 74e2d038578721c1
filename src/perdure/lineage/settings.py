"""The settings of a lineage: how the ledger stores them, how they differ, and what may change.

The ledger decides. `lineage.yaml` only shows the settings of the newest line, for readers.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from perdure.config import (
    TOGETHER,
    Config,
    GuardSettings,
    LmEvalSettings,
    load_config,
    overrides,
)
from perdure.errors import PerdureError
from perdure.lineage.files import relative


# Keys that may differ between runs of one lineage, because they have no effect on its bytes.
FREE = ("lineage", "data")
BASE = ("base", "revision")  # the pin has them
# Settings that cannot change once a stage was learned, and why.
FIXED = {
    "mode": "the stages were learned in this mode",
    "merge": "the stages were merged by this rule",
    "seed": "the first weights of adapters and heads are drawn from it",
    "adapter": "the stages' adapters have its shape",
    "quantization": "the stages were learned on the base in this form",
    "rows": "it decides which rows the learned tasks have",
    "instruction": "it decides which rows the learned tasks have",
    "scoring.mode": "scores of different modes cannot be compared",
}
MAY_CHANGE = ("adapter.lora_dropout",)  # has no effect on an adapter's shape
LONGEST = 100  # the longest value that a line shows, in characters
Changes = dict[str, tuple[Any, Any]]  # from a dotted key to its old and its new value


def stored(config: Config, path: Path) -> dict[str, Any]:
    """Return the settings of a lineage in the folder `path` as the ledger stores them.

    They are plain JSON. The paths of the general rows, of the guard's and of lm-eval's tasks are
    relative to the lineage.
    """
    settings = config.to_dict()
    for key in (*FREE, *BASE):
        settings.pop(key)
    if isinstance(config.method, dict):  # a mapping in JSON has no order
        settings["method"] = [{name: keywords} for name, keywords in config.method.items()]
        settings["method"] = (
            settings["method"][0] if len(config.method) == 1 else settings["method"]
        )
    settings["general"]["file"] = moved(config.general.file, Path.cwd(), path)
    if config.guard:
        guard = _moved_guard(config.guard, Path.cwd(), path)
        _check_tasks_outside(guard.lm_eval, path)
        settings["guard"] = asdict(guard)
    return json.loads(json.dumps(settings, default=str))


def loaded(
    settings: Mapping[str, Any], pin: Mapping[str, Any], path: Path, where: str = "the settings"
) -> Config:
    """Return stored settings as a Config, with paths relative to the working directory.

    Raises:
        PerdureError: a key is unknown, or a value has the wrong type; the line has `where`.
    """
    place = {"base": pin["name"], "revision": pin.get("revision")}
    config = load_config({**settings, **place}, where=where)
    config.general.file = moved(config.general.file, path, Path.cwd())
    if config.guard:
        _check_tasks_outside(config.guard.lm_eval, path)
        config.guard = _moved_guard(config.guard, path, Path.cwd())
    return config


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changes:
    """Return the keys whose values differ; those of two mappings are compared one by one."""
    changes: Changes = {}
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict) and key != "method":
            inner = differences(before, after)
            changes |= {f"{key}.{name}": values for name, values in inner.items()}
        else:
            changes[key] = (before, after)
    return changes


def why_fixed(key: str, old: Mapping[str, Any], new: Mapping[str, Any], stages: int) -> str | None:
    """Return why a setting cannot change in a lineage that has learned, None if it can.

    Args:
        key: the dotted key.
        old: the settings.
        new: the settings after the change.
        stages: the number of active stages.
    """
    if key in MAY_CHANGE:
        return None
    section = key.partition(".")[0]
    if section == "tasks":
        learned, kept = old["tasks"], new["tasks"]
        if old["mode"] in TOGETHER:
            return f"mode {old['mode']} learns all of its tasks together"
        if isinstance(learned, list) and isinstance(kept, list):
            return None if learned[:stages] == kept[:stages] else "the first tasks are learned"
        return "the stages have learned tasks of it"
    return FIXED.get(key) or FIXED.get(section)


def command(path: Path, new: Mapping[str, Any], changes: Changes) -> str:
    """Return the `perdure set` command that makes these changes, which lead to `new`."""
    words = []
    for key in changes:
        section, _, name = key.partition(".")
        if name and name not in new[section]:  # a key that is left out needs its whole section
            key, value = section, new[section]
        else:
            value = new[section][name] if name else new[section]
        words.append(f"{key}={text(value)}")
    return shlex.join(["perdure", "set", str(path), *dict.fromkeys(words)])


def as_typed(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return stored settings with paths as they are typed in the working directory."""
    typed, here = {**settings}, Path.cwd()
    if isinstance(typed.get("general"), dict):
        typed["general"] = {
            **typed["general"],
            "file": moved(typed["general"].get("file"), path, here),
        }
    if isinstance(typed.get("guard"), dict):
        typed["guard"] = {**typed["guard"], "rows": moved(typed["guard"].get("rows"), path, here)}
    return typed


def text(value: Any) -> str:
    """Return a value as it is written after `key=`."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value)
    if is_plain and overrides([f"key={value}"]) == {"key": value}:
        return value
    return json.dumps(value, ensure_ascii=False)


def in_words(changes: Mapping[str, Sequence[Any]], middle: str = " -> ") -> str:
    """Return changes as text: `seed 0 -> 1; max_length 64 -> 32`; long values are left out."""
    parts = []
    for key, values in changes.items():
        if key == "tasks" and (inner := _of_tasks(*values)):
            parts.append(in_words(inner, middle))
            continue
        absent = "not set" if "." in key else "null"
        old, new = (absent if value is None else text(value) for value in values)
        short = max(len(old), len(new)) <= LONGEST
        parts.append(f"{key} {old}{middle}{new}" if short else key)
    return "; ".join(parts)


def _of_tasks(old: Any, new: Any) -> Changes:
    """Return the changes of the first task of a stream that differs; none if tasks were added."""
    for before, after in zip(old or (), new or (), strict=False):
        if before != after and isinstance(before, dict) and isinstance(after, dict):
            changes = differences(before, after)
            return {f"tasks.{before['name']}.{key}": values for key, values in changes.items()}
    return {}


def _check_tasks_outside(harness: LmEvalSettings | None, path: Path) -> None:
    """Check that no task of lm-eval lies in the lineage; its paths are relative to the lineage.

    Such a task may have Python functions, and nothing in a lineage is run, as it may be a
    stranger's.

    Raises:
        PerdureError: one does.
    """
    files = [task for task in harness.tasks if str(task).endswith(".yaml")] if harness else []
    files += [harness.include_path] if harness and harness.include_path else []
    for file in files:
        if (path / str(file)).resolve().is_relative_to(path.resolve()):
            raise PerdureError(
                f"{path}: guard.lm_eval names {file}, which lies in the lineage, and nothing in it "
                "is run; keep tasks of lm-eval in a folder of their own"
            )


def _moved_guard(guard: GuardSettings, start: Path, end: Path) -> GuardSettings:
    """Return the guard's settings with their paths converted by `moved`."""
    harness = guard.lm_eval
    if harness is not None:
        tasks = [moved(t, start, end) if str(t).endswith(".yaml") else t for t in harness.tasks]
        include_path = moved(harness.include_path, start, end)
        harness = replace(harness, tasks=tasks, include_path=include_path)
    return replace(guard, rows=moved(guard.rows, start, end), lm_eval=harness)


def moved(file: Any, start: Path, end: Path) -> Any:
    """Convert a path that is relative to the folder `start` to one relative to the folder `end`.

    `file` is a path or a mapping with `path`. Absolute paths and other values are unchanged.
    """
    if isinstance(file, dict) and "path" in file:
        return {**file, "path": moved(file["path"], start, end)}
    if not isinstance(file, str) or file.startswith("hub:") or Path(file).is_absolute():
        return file
    return relative(start / file, end)
