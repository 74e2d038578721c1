"""Engram keeps a language model learning without forgetting."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from engram.errors import EngramError


if TYPE_CHECKING:
    from engram.api import (
        answer,
        dry_run,
        evaluate,
        export,
        init,
        learn,
        push,
        rebase,
        revert,
        run,
        show,
        verify,
    )
    from engram.config import Config, load_config
    from engram.data.task import Split, Task
    from engram.learn.methods.recurrent_kif import RecurrentKIF
    from engram.lineage.lineage import Lineage

__all__ = [
    "Config",
    "EngramError",
    "Lineage",
    "RecurrentKIF",
    "Split",
    "Task",
    "answer",
    "dry_run",
    "evaluate",
    "export",
    "init",
    "learn",
    "load_config",
    "push",
    "rebase",
    "revert",
    "run",
    "show",
    "verify",
]

VERBS = [name for name in __all__ if name.islower() and name not in ("learn", "load_config")]
HOMES = {
    "Config": "config",
    "Lineage": "lineage.lineage",
    "RecurrentKIF": "learn.methods.recurrent_kif",
    "Split": "data.task",
    "Task": "data.task",
    "load_config": "config",
} | dict.fromkeys(VERBS, "api")


def __getattr__(name: str) -> Any:
    """The public names, loaded when they are first used."""
    if name not in HOMES:
        raise AttributeError(f"module 'engram' has no attribute {name!r}")
    return getattr(importlib.import_module(f"engram.{HOMES[name]}"), name)


class _Verb(ModuleType):
    """`engram.learn` is a package and a verb: called, it is `engram.api.learn`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return importlib.import_module("engram.api").learn(*args, **kwargs)


importlib.import_module("engram.learn").__class__ = _Verb
