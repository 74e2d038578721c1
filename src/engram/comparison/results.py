"""The files of a comparison: `compare.json`, the same for the same cells, and `costs.json`."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from engram.comparison.cell import Cell
from engram.comparison.grid import Grid
from engram.comparison.summary import costs_of, lines
from engram.comparison.trials import best
from engram.reporting.results import PACKAGES, device


RESULTS, COSTS = "compare.json", "costs.json"
FORMAT = 1

Found = Mapping[Cell, Mapping[str, Any] | str]  # a cell's record, or the line that tells its error
Cells = Mapping[str, Sequence[Cell]]  # by line


def choices(grid: Grid, trials: Cells, found: Found) -> dict[str, dict[str, Any]]:
    """By line what was tried, and which value was best; none if a trial broke or has no OP."""
    made = {}
    assert grid.choose is not None
    for line in (line for line in grid.lines if line.name in trials):
        key, values = grid.choose.trials(line.method)
        records = [found[cell] for cell in trials[line.name]]
        errors = [f"its trial {n}: {r}" for n, r in enumerate(records, 1) if isinstance(r, str)]
        scores = [None if isinstance(record, str) else record["overall"] for record in records]
        known = [score for score in scores if score is not None]
        if len(known) < len(scores) and not errors:
            errors = ["its trials have no score"]
        made[line.name] = {
            "key": key,
            "values": values,
            "overall": scores,
            "chosen": None if errors else values[best(known)],
            "trials": [f"{cell.kind}/{cell.name}" for cell in trials[line.name]],
            "error": errors[0] if errors else None,
        }
    return made


def results(grid: Grid, cells: Cells, chosen: dict[str, Any], found: Found) -> dict[str, Any]:
    """All that is decided by the settings and the rows."""
    records = {
        name: {(cell.order, cell.seed): r for cell in own if not isinstance(r := found[cell], str)}
        for name, own in cells.items()
    }
    return {
        "format": FORMAT,
        "settings": grid.written,
        "baseline": grid.baseline,
        "orders": grid.orders,
        "seeds": grid.seeds,
        "choose": chosen or None,
        "lines": lines(grid, records),
        "cells": [_cell(cell, found[cell]) for own in cells.values() for cell in own],
    }


def costs(cells: Cells, found: Found) -> dict[str, Any]:
    """What differs between identical runs: seconds, peak memory, the machine."""
    own = {n: [r for c in some if not isinstance(r := found[c], str)] for n, some in cells.items()}
    threads = next((cell.config.threads for some in cells.values() for cell in some), None)
    return {
        "device": device(threads),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "lines": {name: costs_of(records) for name, records in own.items()},
        "cells": {
            cell.name: record["varying"]
            for some in cells.values()
            for cell in some
            if not isinstance(record := found[cell], str)
        },
    }


def _cell(cell: Cell, found: Mapping[str, Any] | str) -> dict[str, Any]:
    about = {"line": cell.line, "order": cell.order, "seed": cell.seed, "name": cell.name}
    if isinstance(found, str):
        return {**about, "error": found}
    return {**about, "error": None, **{k: v for k, v in found.items() if k != "varying"}}
