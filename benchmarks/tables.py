"""What the benchmarks' tables share: Markdown, means with their spread, paired differences."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engram.measure.statistics import Pair, deviation, holm, over_orders, paired


LEVEL = 0.05  # of what differs


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table whose columns after the first `texts` are numbers."""
    rule = ("---",) * texts + ("---:",) * (len(heads) - texts)
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *lines))


def spread(cells: Mapping[Pair, float]) -> dict[str, float | None]:
    """The mean over orders, seeds averaged within each, and the deviation of all cells."""
    return {"mean": over_orders(cells).mean, "deviation": deviation(list(cells.values()))}


def difference(ours: Mapping[Pair, float], theirs: Mapping[Pair, float]) -> dict[str, Any]:
    """Ours minus theirs on the pairs (order, seed) both have, with the interval over orders."""
    found = paired(ours, theirs)
    low, high = (found.interval.low, found.interval.high) if found.interval else (None, None)
    about = {"pairs": found.cells, "orders": found.orders, "mean": found.mean}
    return about | {"low": low, "high": high, "p": found.p, "within_noise": found.within_noise}


def correct(entries: Iterable[dict[str, Any]], key: str) -> None:
    """Holm's correction over the differences under `key`, those with one baseline."""
    differences = [entry[key] for entry in entries if key in entry]
    adjusted = holm({n: found["p"] for n, found in enumerate(differences)})
    for found, p in zip(differences, adjusted.values(), strict=True):
        found["p_holm"] = p
        found["differs"] = None if p is None else p < LEVEL


def spread_text(value: Mapping[str, float | None], form: str) -> str:
    if value["mean"] is None:
        return "-"
    wide = value["deviation"]
    return f"{value['mean']:{form}}" + ("" if wide is None else f" ± {wide:.3f}")


def difference_text(value: Mapping[str, Any] | None) -> str:
    if value is None or value["mean"] is None:
        return "-"
    if value["within_noise"] is None:
        return f"{value['mean']:+.3f}"
    said = " *" if value.get("differs") else " (noise)" if value["within_noise"] else ""
    return f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]{said}"
