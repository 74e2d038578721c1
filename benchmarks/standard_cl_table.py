"""The records of Standard CL as one line a method: means, spread, paired differences, time."""

from typing import Any

import tables
from rich.table import Table

from engram.measure.statistics import mean


REFERENCES = ("replay", "mask_free")
COLUMNS = (
    "method",
    "rate",
    "n",
    "OP",
    "BWT",
    "learned",
    "OP - replay [95 %]",
    "OP - mask-free [95 %]",
    "CPU s",
    "x sequential",
)


def summarize(
    records: list[dict[str, Any]], methods: list[str], rates: dict[str, float]
) -> list[dict[str, Any]]:
    """One entry a method with a record. Differences are over the (order, seed) pairs both have."""
    by_method: dict[str, dict[tuple, dict[str, Any]]] = {method: {} for method in methods}
    for record in records:
        by_method[record["method"]][record["order"], record["seed"]] = record

    def overall(method: str) -> dict[Any, float]:
        return {pair: record["overall"] for pair, record in by_method[method].items()}

    summary = []
    for method in (m for m in methods if by_method[m]):
        cells = by_method[method]
        entry: dict[str, Any] = {"method": method, "learning_rate": rates[method], "n": len(cells)}
        for name in ("overall", "backward_transfer", "learning_accuracy", "seconds"):
            known = {pair: r[name] for pair, r in cells.items() if r.get(name) is not None}
            entry[name] = tables.spread(known)
        plain = by_method["sequential"]
        ratios = [
            r["seconds"] / plain[pair]["seconds"] for pair, r in cells.items() if pair in plain
        ]
        entry["relative_seconds"] = mean(ratios)
        for other in (o for o in REFERENCES if o != method):
            entry[f"to_{other}"] = tables.difference(overall(method), overall(other))
        summary.append(entry)
    for other in REFERENCES:
        tables.correct(summary, f"to_{other}")
    return summary


def table(summary: list[dict[str, Any]]) -> Table:
    shown = Table(title="Standard CL, all-MiniLM-L6-v2, LoRA r 8, 1 epoch")
    for i, column in enumerate(COLUMNS):
        shown.add_column(column, justify="right" if i else "left", no_wrap=i == 0)
    for entry in summary:
        shown.add_row(*_line(entry))
    return shown


def markdown(summary: list[dict[str, Any]]) -> str:
    return tables.markdown(COLUMNS, map(_line, summary))


def _line(entry: dict[str, Any]) -> tuple[str, ...]:
    relative = entry["relative_seconds"]
    seconds = entry["seconds"]["mean"]
    return (
        entry["method"],
        f"{entry['learning_rate']:g}" if entry["learning_rate"] else "-",
        str(entry["n"]),
        tables.spread_text(entry["overall"], ".3f"),
        tables.spread_text(entry["backward_transfer"], "+.3f"),
        tables.spread_text(entry["learning_accuracy"], ".3f"),
        *(tables.difference_text(entry.get(f"to_{other}")) for other in REFERENCES),
        f"{seconds:.0f}" if seconds else "-",
        f"{relative:.2f}" if relative else "-",
    )
