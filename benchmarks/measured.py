"""The costs that `engram methods NAME` shows, from the result file of `methods.py`."""

import json
from pathlib import Path
from typing import Any

from methods_table import cells

from engram.reporting.measured import COLUMNS


FILE = Path(__file__).parent.parent / "src" / "engram" / "report" / "measured.json"
SETTING = (
    "benchmarks/methods.py, an encoder of 22.7 M parameters with LoRA on four tasks of 400 rows, "
    "one thread, two seeds of two orders; time, memory and OP beside `sequential`, on these orders"
)


def measured(summary: list[dict[str, Any]]) -> str:
    """The text of the file: for each method its lines."""
    methods: dict[str, list[dict[str, str]]] = {}
    for entry in summary:
        given = entry["keywords"]
        name = given if isinstance(given, str) else "+".join(given)
        if entry["method"] in ("joint", "sequential_whole") or name == "sequential":
            continue
        line = cells(entry)
        methods.setdefault(name, []).append({key: line[column] for key, column in COLUMNS.items()})
    return json.dumps({"setting": SETTING, "methods": methods}, indent=1) + "\n"
