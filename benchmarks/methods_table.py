"""The records of `methods.py` as one line a method, everything relative to `sequential`."""

from typing import Any

import tables

from engram.measure.statistics import mean


COLUMNS = ("method", "keywords", "rate", "n", "OP", "OP - sequential", "BWT", "learned")
COSTS = ("time x", "peak MB +", "state MB", "rows kept")


def summarize(records: list[dict[str, Any]], methods: list[str]) -> list[dict[str, Any]]:
    """One entry a method with a record; differences within the (order, seed) pairs both have.

    What trains whole weights is measured against `sequential_whole`.
    """
    by_method: dict[str, dict[Any, dict[str, Any]]] = {method: {} for method in methods}
    for record in records:
        by_method[record["method"]][record["order"], record["seed"]] = record
    summary = []
    for method in (m for m in methods if by_method[m]):
        cells = by_method[method]
        one = next(iter(cells.values()))
        plain = by_method["sequential_whole" if one["whole"] else "sequential"]
        both = [(r, plain[pair]) for pair, r in cells.items() if pair in plain]
        entry = {"method": method, "n": len(cells), "whole": one["whole"]}
        entry |= {key: one[key] for key in ("keywords", "learning_rate", "changed")}
        for name in ("overall", "backward_transfer", "learning_accuracy"):
            known = {pair: r[name] for pair, r in cells.items() if r.get(name) is not None}
            entry[name] = tables.spread(known)
        entry["to_sequential"] = tables.difference(
            {pair: r["overall"] for pair, r in cells.items()},
            {pair: r["overall"] for pair, r in plain.items()},
        )
        entry["relative_seconds"] = _times(both)
        peaks = [(r["peak_memory_kib"] - p["peak_memory_kib"]) / 1024 for r, p in both]
        entry["extra_peak_mb"] = mean(peaks)
        entry["state_mb"] = mean([r["state_bytes"] / 1e6 for r in cells.values()])
        entry["remembered_rows"] = one["remembered_rows"] if one["rehearses"] else 0
        summary.append(entry)
    compared = [entry for entry in summary if "sequential" not in entry["method"]]
    for whole in (False, True):
        tables.correct([e for e in compared if e["whole"] == whole], "to_sequential")
    return summary


def _times(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> float | None:
    """CPU seconds relative to the plain run, with what is done before and after training if known.

    Where no pair knows that, those of training alone.
    """
    for key in ("cpu_seconds", "seconds"):
        known = [r[key] / plain[key] for r, plain in pairs if key in r and key in plain]
        if known:
            return mean(known)
    return None


def markdown(summary: list[dict[str, Any]]) -> str:
    return tables.markdown((*COLUMNS, *COSTS), [[*cells(e).values()] for e in summary], texts=2)


def cells(entry: dict[str, Any]) -> dict[str, str]:
    """A line of the table, by its columns."""
    plain = "sequential" in entry["method"]
    shown = (
        entry["method"],
        _keywords(entry["keywords"], entry["changed"]),
        f"{entry['learning_rate']:g}",
        str(entry["n"]),
        tables.spread_text(entry["overall"], ".3f"),
        "-" if plain else tables.difference_text(entry["to_sequential"]),
        tables.spread_text(entry["backward_transfer"], "+.3f"),
        tables.spread_text(entry["learning_accuracy"], ".3f"),
        f"{entry['relative_seconds']:.2f}",
        f"{entry['extra_peak_mb']:+.0f}",
        f"{entry['state_mb']:.1f}",
        str(entry["remembered_rows"]),
    )
    return dict(zip((*COLUMNS, *COSTS), shown, strict=True))


def _keywords(method: Any, changed: dict[str, Any]) -> str:
    given = [kw for part in [method] if isinstance(part, dict) for kw in part.values()]
    said = [f"{k}={v}" for keywords in given for k, v in keywords.items()]
    said += [f"memory.{k}={v}" for k, v in changed.get("memory", {}).items()]
    return ", ".join(said) or "-"
