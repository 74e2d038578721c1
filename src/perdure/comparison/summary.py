"""The lines of a comparison's table, computed from the records of its cells."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from perdure.comparison.grid import Grid, Line
from perdure.measure.statistics import (
    SIGNIFICANCE,
    Interval,
    Pair,
    deviation,
    holm,
    mean,
    over_orders,
    paired,
)


SCORES = (
    "overall",
    "backward_transfer",
    "forward_transfer",
    "forgetting",
    "learning_accuracy",
)
Records = Mapping[str, Mapping[Pair, Mapping[str, Any]]]  # by line, then by pair


def lines(grid: Grid, records: Records) -> list[dict[str, Any]]:
    """The scores of each line, their differences to the baseline, and the costs in counts.

    Means and intervals are over orders, with the seeds of an order averaged. A difference `differs`
    if it is significant after Holm's correction over the lines with the same baseline. Scores that
    are unknown or whose cell failed are left out; `cells` counts the others, of `of` in all.
    """
    entries = [_line(grid, line, records) for line in grid.lines]
    for baseline in {entry["baseline"] for entry in entries}:
        compared = [
            entry for entry in entries if entry["baseline"] == baseline and entry["to_baseline"]
        ]
        for key in SCORES:
            mark_what_differs([entry["to_baseline"][key] for entry in compared])
    return entries


def mark_what_differs(differences: Sequence[dict[str, Any]]) -> None:
    """Add Holm's correction to `difference`s from the same baseline, in place.

    `p_holm` is the corrected p-value, and `differs` whether it is below 5 %.
    """
    adjusted = holm({n: entry["p"] for n, entry in enumerate(differences)})
    for entry, p in zip(differences, adjusted.values(), strict=True):
        entry["p_holm"] = p
        entry["differs"] = None if p is None else p < SIGNIFICANCE


def costs_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The costs of a line that differ between identical runs: mean seconds, maximum memory."""
    varying = [record["varying"] for record in records]
    return {
        "seconds": mean([v["seconds"] for v in varying]),
        "seconds_scoring": mean([v["seconds_scoring"] for v in varying]),
        "cpu_seconds": mean([v["cpu_seconds"] for v in varying]),
        "peak_memory_bytes": max((v["peak_memory_bytes"] for v in varying), default=None),
    }


def _line(grid: Grid, line: Line, records: Records) -> dict[str, Any]:
    line_records = records[line.name]
    baseline = grid.baseline_of(line)
    baseline_records = {} if baseline is None or baseline == line else records[baseline.name]
    return {
        "name": line.name,
        "method": line.method,
        "settings": line.settings["method"],
        "varied": line.varied,
        "cells": len(line_records),
        "of": len(grid.orders) * len(grid.seeds),
        **{key: score(_known(line_records, key)) for key in SCORES},
        "published": grid.published.get(line.name),
        "baseline": None if baseline is None else baseline.name,
        "to_baseline": {
            key: difference(_known(line_records, key), _known(baseline_records, key))
            for key in SCORES
        }
        if baseline_records
        else None,
        "rows": {
            direction: _mean(record["rows"][direction] for record in line_records.values())
            for direction in ("forward", "backward")
        },
        **{
            key: _mean(record[key] for record in line_records.values())
            for key in ("stored_rows", "stored_bytes")
        },
        "trainable": max((record["trainable"] for record in line_records.values()), default=None),
        "lost": lost(list(line_records.values())),
    }


def lost(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the cells of a line have lost, in sums over the cells in which it was measured.

    `tasks` counts the old tasks that were lost, and `general` the cells that lost general ability,
    of the `judged`. `fell`, `rose` and `passed_by_reference` count the guard's checks at the last
    stages, and `kl` is their mean KL from the base in nats per token. A value is None if no cell
    measured it.
    """
    tasks = [len(names) for record in records if (names := record.get("lost_tasks")) is not None]
    guarded = [general for record in records if (general := record.get("general"))]
    judged = [general for general in guarded if general["judged"]]
    counts = {
        key: sum(general[key] for general in guarded) if guarded else None
        for key in ("passed_by_reference", "fell", "rose")
    }
    return {
        "tasks": sum(tasks) if tasks else None,
        "general": sum(general["lost"] for general in judged) if judged else None,
        "judged": len(judged),
        **counts,
        "kl": mean([g["kl"] for g in guarded if g["kl"] is not None]) if guarded else None,
    }


def _known(records: Mapping[Pair, Mapping[str, Any]], key: str) -> dict[Any, float]:
    return {pair: record[key] for pair, record in records.items() if record[key] is not None}


def score(scores: Mapping[Pair, float]) -> dict[str, Any]:
    """The mean over orders with its interval, and the deviation of all cells."""
    spread = over_orders(scores)
    summary = {"mean": spread.mean, "deviation": deviation(list(scores.values()))}
    return summary | {"cells": spread.cells, "orders": spread.orders} | _ends(spread.interval)


def difference(ours: Mapping[Pair, float], theirs: Mapping[Pair, float]) -> dict[str, Any]:
    """Ours minus theirs on the pairs that both have, with the interval over orders."""
    comparison = paired(ours, theirs)
    summary = {
        "mean": comparison.mean,
        "pairs": comparison.cells,
        "orders": comparison.orders,
        "p": comparison.p,
    }
    return summary | {"within_noise": comparison.within_noise} | _ends(comparison.interval)


def _ends(interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {"low": None, "high": None}
    return {"low": interval.low, "high": interval.high}


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean, or None if a value is unknown."""
    known = list(values)
    return None if None in known else mean(known)  # type: ignore[arg-type]
