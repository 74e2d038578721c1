"""The times and costs of stages. They may differ between equal runs, and nothing needs them."""

import json
from pathlib import Path
from typing import Any

from perdure.disk import open_file
from perdure.lineage.files import dump, write_text


def read_timings(path: Path) -> dict[str, Any] | None:
    """Return the timings of each stage, by its number as text; None if the file is damaged."""
    if not path.exists():
        return {}
    try:
        with open_file(path, "r", encoding="utf-8") as file:
            timings = json.load(file)
        whole = all(_is_timing(number, timing) for number, timing in timings.items())
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None
    return timings if whole else None


def add_timing(path: Path, stage: int, timing: dict[str, Any]) -> None:
    """Write the timing of a stage. A damaged file is put aside."""
    timings = read_timings(path)
    if timings is None:
        put_aside(path)
    write_text(path, dump({**(timings or {}), str(stage): timing}))


def put_aside(path: Path) -> Path:
    """Rename a damaged file, so that another one can be written, and return its new path."""
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while aside.exists() or aside.is_symlink():
        number += 1
        aside = path.with_name(f"{path.name}.damaged{number}")
    return path.rename(aside)


def _is_timing(number: str, timing: dict[str, Any]) -> bool:
    rows, seconds = timing.get("rows", {}), timing.get("seconds", {})
    numbers = [*rows.values(), *seconds.values(), timing.get("steps", 0)]
    return (
        number.isdecimal()
        and (not rows or {"forward", "backward"} <= rows.keys())
        and all(isinstance(value, int | float) for value in numbers if value is not None)
    )
