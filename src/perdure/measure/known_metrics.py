"""The metrics of one's own that a user has named in a command, on this machine.

A metric `MODULE:FUNCTION` is code. Ledgers name metrics, too, and a ledger may be a stranger's:
`shutil:move` would be a function of two texts. So a ledger's metric is imported only if the user
has named the same function, in a module with the same source, in an earlier command, or names it
in `PERDURE_METRICS`, several separated by commas.
"""

import contextlib
import os
from pathlib import Path
from typing import Any


def remember(name: str, source: str) -> None:
    """Remember that the user has named a metric.

    Args:
        name: the metric, `MODULE:FUNCTION`.
        source: the SHA-256 of the module's source (`custom_metric.metric_source`).
    """
    if is_known(name, source):
        return
    with contextlib.suppress(OSError):  # then `PERDURE_METRICS` has to name it
        _file().parent.mkdir(parents=True, exist_ok=True)
        with _file().open("a", encoding="utf-8") as file:
            file.write(f"{source} {name}\n")


def is_known(name: str, source: Any) -> bool:
    """Return whether the user has named a metric with this source, or names it now."""
    if name in os.environ.get("PERDURE_METRICS", "").split(","):
        return True
    try:
        return f"{source} {name}" in _file().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return False


def _file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "perdure" / "metrics"
