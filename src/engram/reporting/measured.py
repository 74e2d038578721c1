"""What each method kept and cost on the benchmark of all methods (benchmarks/methods.py).

`measured.json` beside this file is made from the result file by `python benchmarks/readme.py`.
"""

import json
from importlib.resources import files
from typing import Any


COLUMNS = {
    "keywords": "keywords",
    "overall": "OP",
    "difference": "OP - sequential",
    "seconds": "time x",
    "peak_mb": "peak MB +",
    "state_mb": "state MB",
    "rows": "rows kept",
}


def _file() -> dict[str, Any]:
    text = (files("engram.reporting") / "measured.json").read_text(encoding="utf-8")
    return json.loads(text)


def setting() -> str:
    """On what it was measured, in a line."""
    return _file()["setting"]


def measured(name: str) -> list[dict[str, str]]:
    """A line for each set of keywords of the method that was measured, by the keys of COLUMNS."""
    return _file()["methods"].get(name, [])


def measured_rows(found: list[dict[str, str]]) -> list[list[str]]:
    """These lines as cells, the head first."""
    return [list(COLUMNS.values()), *([line[key] for key in COLUMNS] for line in found)]
