"""Perdure keeps a language model learning without forgetting."""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from perdure import places
from perdure.errors import PerdureError, RefusedError


if TYPE_CHECKING:
    from perdure.api import (
        adopt,
        answer,
        chat,
        check,
        compact,
        compare,
        configure,
        dry_run,
        evaluate,
        export,
        init,
        learn,
        log,
        merge,
        pack,
        probe,
        push,
        rebase,
        repair,
        report,
        revert,
        run,
        show,
        statistics,
        unpack,
        verify,
    )
    from perdure.config import Config, load_config
    from perdure.data.task import Split, Task
    from perdure.lineage.lineage import Lineage
    from perdure.measure.guard.callback import Guard
    from perdure.methods.recurrent_kif.method import RecurrentKIF

__all__ = [
    "Config",
    "Guard",
    "Lineage",
    "PerdureError",
    "RecurrentKIF",
    "RefusedError",
    "Split",
    "Task",
    "adopt",
    "answer",
    "chat",
    "check",
    "compact",
    "compare",
    "configure",
    "dry_run",
    "evaluate",
    "export",
    "init",
    "learn",
    "load_config",
    "log",
    "merge",
    "pack",
    "probe",
    "push",
    "rebase",
    "repair",
    "report",
    "revert",
    "run",
    "show",
    "statistics",
    "unpack",
    "verify",
]

VERBS = [name for name in __all__ if name.islower() and name != "load_config"]
HOMES = {
    "Config": "config",
    "Guard": "measure.guard.callback",
    "Lineage": "lineage.lineage",
    "RecurrentKIF": "methods.recurrent_kif.method",
    "Split": "data.task",
    "Task": "data.task",
    "load_config": "config",
} | dict.fromkeys(VERBS, "api")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in HOMES:
        raise AttributeError(f"module 'perdure' has no attribute {name!r}")
    return getattr(importlib.import_module(f"perdure.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _every_key() -> tuple[places.Place, ...]:
    """Return all keys of the settings. Their modules are imported only when a key is wrong."""
    from perdure.keys import every_key

    return every_key()


places.every_key = _every_key

# PEFT imports bitsandbytes, which on some CPUs warns that a faster kernel for 4-bit weights, which
# is optional, is not installed. That looks like a failure of whatever command is run.
NO_FAST_KERNEL = "Failed to load CPU gemm_4bit_forward"
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: not str(record.msg).startswith(NO_FAST_KERNEL)
)
