"""The times and costs of stages. They may differ between equal runs, and nothing needs them."""

from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from perdure.disk import open_file
from perdure.lineage.files import dump, write_text
from perdure.parsing import LARGEST_JSON, parse_json, read_limited
from perdure.shapes import Rule, check_shape


Number = Annotated[str, Rule("the number of a stage", lambda text: text.isdecimal())]
Passes = Annotated[
    dict[str, float],
    Rule(
        "how many rows went forward and backward",
        lambda rows: not rows or {"forward", "backward"} <= rows.keys(),
    ),
]


class Timing(TypedDict):
    """The times and costs of a stage. Further keys may be there."""

    rows: NotRequired[Passes | None]
    seconds: NotRequired[dict[str, float]]
    steps: NotRequired[int | None]
    date: NotRequired[str | None]
    peak_memory_kib: NotRequired[float | None]
    row_tokens: NotRequired[float | None]


def read_timings(path: Path) -> dict[str, Any] | None:
    """Return the timings of each stage, by its number as text; None if the file is damaged."""
    if not path.exists():
        return {}
    try:
        with open_file(path, "rb") as file:
            timings = parse_json(read_limited(file, LARGEST_JSON, str(path)))
        check_shape(timings, dict[Number, Timing], str(path))
    except ValueError:
        return None
    return timings


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
