"""How the benchmarks' tables are written: Markdown, means with their spread, differences."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table whose columns after the first `texts` are numbers."""
    rule = ("---",) * texts + ("---:",) * (len(heads) - texts)
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *lines))


def spread_text(value: Mapping[str, Any], form: str) -> str:
    """A mean and, where there is one, the deviation."""
    if value["mean"] is None:
        return "-"
    wide = value["deviation"]
    return f"{value['mean']:{form}}" + ("" if wide is None else f" ± {wide:.3f}")


def difference_text(value: Mapping[str, Any] | None) -> str:
    """A difference with its interval and what is to be thought of it."""
    if value is None or value["mean"] is None:
        return "-"
    if value["within_noise"] is None:
        return f"{value['mean']:+.3f}"
    said = " *" if value.get("differs") else " (noise)" if value["within_noise"] else ""
    return f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]{said}"
