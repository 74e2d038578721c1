"""The one form of every result file."""

import json
import platform
import tomllib
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parent.parent


def write_results(
    path: str | Path,
    benchmark: str,
    command: str,
    device: str,
    records: list[dict[str, Any]],
    **more: Any,
) -> None:
    """Writes {"benchmark", "command", "versions", "device", "date", "records"} as JSON.

    `device` names the kind of machine only, such as "cpu, 1 thread". Unknown cells are None. What
    only one benchmark has to say comes as `more` keys. The file appears whole or not at all.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = {"python": platform.python_version(), "engram": project["version"]}
    versions |= {package: version(package) for package in ("torch", "transformers", "peft")}
    results = {
        "benchmark": benchmark,
        "command": command,
        "versions": versions,
        "device": device,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "records": records,
        **more,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    beside.replace(path)
