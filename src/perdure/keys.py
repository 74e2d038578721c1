"""Every key that the settings can have, and where it is written: for errors about unknown keys.

The keys are read from `Config`, `TrainingArguments`, the settings of PEFT and bitsandbytes, and the
keywords of the methods, so none is listed twice. `perdure` hands `every_key` to `perdure.places`,
and imports this module only when a key is wrong, because it imports everything.
"""

import dataclasses
from functools import cache
from typing import Any

from peft import LoraConfig, PeftConfig

from perdure.comparison.grid import GRID_KEYS
from perdure.config import Config, section_of
from perdure.data.stream import KEYS as TASK_KEYS
from perdure.methods import keywords, names
from perdure.models.base import quantization_keys
from perdure.places import Place
from perdure.train.arguments import settable


@cache
def every_key() -> tuple[Place, ...]:
    """Return every key that the settings can have."""
    return (
        *_sections(),
        *_training(),
        *_adapter(),
        *_quantization(),
        *_methods(),
        *_tasks(),
        *_compare(),
    )


def _sections() -> list[Place]:
    keys = []
    for key in dataclasses.fields(Config):
        keys.append(Place("", key.name, key.name))
        keys += _inside(key.name, section_of(key.type), key.name)
    return keys


def _inside(name: str, section: Any, written: str) -> list[Place]:
    """Return the keys of a section, and of the sections in it."""
    keys = []
    for key in dataclasses.fields(section) if section else ():
        keys.append(Place(name, key.name, f"{written}.{key.name}"))
        keys += _inside(key.name, section_of(key.type), f"{written}.{key.name}")
    return keys


def _training() -> list[Place]:
    return [Place("training", name, f"training.{name}") for name in settable()]


def _adapter() -> list[Place]:
    # Keys that all adapters have, except the type, are set by PEFT and not by users.
    set_by_peft = {field.name for field in dataclasses.fields(PeftConfig)} - {"peft_type"}
    names = [f.name for f in dataclasses.fields(LoraConfig) if f.name not in set_by_peft]
    return [Place("adapter", name, f"adapter.{name}") for name in names]


def _quantization() -> list[Place]:
    return [Place("quantization", name, f"quantization.{name}") for name in quantization_keys()]


def _methods() -> list[Place]:
    by_keyword: dict[str, list[str]] = {}
    for method in names():
        for keyword in keywords(method):
            by_keyword.setdefault(keyword, []).append(method)
    keys = [Place("method", method, f"method: {method}") for method in names()]
    for keyword, methods in by_keyword.items():
        name = methods[0] if len(methods) == 1 else "NAME"
        which = "" if len(methods) == 1 else f" for {', '.join(methods)}"
        written = f"method: {{{name}: {{{keyword}: ...}}}}{which}"
        keys += [Place(f"method.{method}", keyword, written) for method in methods]
    return keys


def _tasks() -> list[Place]:
    return [Place("tasks", name, f"tasks: [{{{name}: ...}}]") for name in TASK_KEYS]


def _compare() -> list[Place]:
    return [
        Place("compare", name, f"{name} in the YAML of `perdure compare`") for name in GRID_KEYS
    ]
