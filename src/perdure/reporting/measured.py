"""The scores and costs of each method on one benchmark (benchmarks/grids/methods.yaml).

`python benchmarks/tables.py` makes `measured.json`, next to this file, from the result file.
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
    text = (files("perdure.reporting") / "measured.json").read_text(encoding="utf-8")
    return json.loads(text)


def setting() -> str:
    """Return one line about the setting of the measurement."""
    return _file()["setting"]


def measured(name: str) -> list[dict[str, str]]:
    """Return a mapping with the keys of COLUMNS for each measured set of a method's keywords."""
    return _file()["methods"].get(name, [])


def measured_rows(measurements: list[dict[str, str]]) -> list[list[str]]:
    """Return the cells of a table of measurements, with the header first."""
    cells = [[measurement[key] for key in COLUMNS] for measurement in measurements]
    return [list(COLUMNS.values()), *cells]
