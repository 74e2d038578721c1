"""The files of a comparison: `compare.json`, the same for the same cells, and `costs.json`."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from perdure.comparison.cell import Cell
from perdure.comparison.grid import Grid
from perdure.comparison.summary import costs_of, lines
from perdure.comparison.trials import best
from perdure.reporting.results import PACKAGES, device


RESULTS, COSTS = "compare.json", "costs.json"
FORMAT = 1

# A cell's record, or the line that tells its error.
Outcomes = Mapping[Cell, Mapping[str, Any] | str]
Cells = Mapping[str, Sequence[Cell]]  # by line


def choices(grid: Grid, trials: Cells, outcomes: Outcomes) -> dict[str, dict[str, Any]]:
    """By line what was tried, and which value was best; none if a trial broke or has no OP."""
    chosen = {}
    assert grid.choose is not None
    for line in (line for line in grid.lines if line.name in trials):
        key, values = grid.choose.trials(line.method)
        records = [outcomes[cell] for cell in trials[line.name]]
        errors = [f"its trial {n}: {r}" for n, r in enumerate(records, 1) if isinstance(r, str)]
        scores = [None if isinstance(record, str) else record["overall"] for record in records]
        known = [score for score in scores if score is not None]
        if len(known) < len(scores) and not errors:
            errors = ["its trials have no score"]
        chosen[line.name] = {
            "key": key,
            "values": values,
            "overall": scores,
            "chosen": None if errors else values[best(known)],
            "trials": [f"{cell.kind}/{cell.name}" for cell in trials[line.name]],
            "error": errors[0] if errors else None,
        }
    return chosen


def results(grid: Grid, cells: Cells, chosen: dict[str, Any], outcomes: Outcomes) -> dict[str, Any]:
    """All that is decided by the settings and the rows."""
    records = {
        name: {
            (cell.order, cell.seed): r
            for cell in line_cells
            if not isinstance(r := outcomes[cell], str)
        }
        for name, line_cells in cells.items()
    }
    return {
        "format": FORMAT,
        "settings": grid.written,
        "baseline": grid.baseline,
        "orders": grid.orders,
        "seeds": grid.seeds,
        "choose": chosen or None,
        "lines": lines(grid, records),
        "cells": [
            _cell(cell, outcomes[cell]) for line_cells in cells.values() for cell in line_cells
        ],
    }


def costs(cells: Cells, outcomes: Outcomes) -> dict[str, Any]:
    """What differs between identical runs: seconds, peak memory, the machine."""
    records_by_line = {
        n: [r for c in line_cells if not isinstance(r := outcomes[c], str)]
        for n, line_cells in cells.items()
    }
    threads = next(
        (cell.config.threads for line_cells in cells.values() for cell in line_cells), None
    )
    return {
        "device": device(threads),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "lines": {name: costs_of(records) for name, records in records_by_line.items()},
        "cells": {
            cell.name: record["varying"]
            for line_cells in cells.values()
            for cell in line_cells
            if not isinstance(record := outcomes[cell], str)
        },
    }


def _cell(cell: Cell, outcome: Mapping[str, Any] | str) -> dict[str, Any]:
    identity = {"line": cell.line, "order": cell.order, "seed": cell.seed, "name": cell.name}
    if isinstance(outcome, str):
        return {**identity, "error": outcome}
    return {**identity, "error": None, **{k: v for k, v in outcome.items() if k != "varying"}}
