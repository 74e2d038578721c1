"""Text of the benchmarks' tables: Markdown, means with their deviation, and differences."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table with `text_columns` columns of text; the others are aligned as numbers."""
    rule = ("---",) * text_columns + ("---:",) * (len(heads) - text_columns)
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *lines))


def spread_text(value: Mapping[str, Any], form: str) -> str:
    """A mean with its deviation, if there is one."""
    if value["mean"] is None:
        return "-"
    deviation = value["deviation"]
    return f"{value['mean']:{form}}" + ("" if deviation is None else f" ± {deviation:.3f}")


def difference_text(value: Mapping[str, Any] | None, form: str = ".3f") -> str:
    """A difference with its interval, and a mark for significance or noise."""
    if value is None or value["mean"] is None:
        return "-"
    if value["within_noise"] is None:
        return f"{value['mean']:+{form}}"
    mark = " *" if value.get("differs") else " (noise)" if value["within_noise"] else ""
    mean, low, high = (f"{value[key]:+{form}}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]{mark}"
