"""The files of a comparison: `compare.json`, which is reproducible, and `costs.json`."""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from perdure.comparison.cell import Cell
from perdure.comparison.grid import Grid
from perdure.comparison.processes import REFUSED
from perdure.comparison.summary import costs_of, lines
from perdure.comparison.trials import best
from perdure.reporting.results import PACKAGES, device


RESULTS, COSTS = "compare.json", "costs.json"
FORMAT = 1

# The record of each cell, or its error in one line.
Outcomes = Mapping[Cell, Mapping[str, Any] | str]
Cells = Mapping[str, Sequence[Cell]]  # by line


def choices(grid: Grid, trials: Cells, outcomes: Outcomes) -> dict[str, dict[str, Any]]:
    """The tried and the best value of each line; no best value if a trial failed or has no OP."""
    chosen = {}
    assert grid.choose is not None
    for line in (line for line in grid.lines if line.name in trials):
        key, values = grid.choose.trials(line.method)
        records = [outcomes[cell] for cell in trials[line.name]]
        errors = [f"trial {n}: {r}" for n, r in enumerate(records, 1) if isinstance(r, str)]
        scores = [None if isinstance(record, str) else record["overall"] for record in records]
        known_scores = [score for score in scores if score is not None]
        if len(known_scores) < len(scores) and not errors:
            errors = ["the trials have no score"]
        chosen[line.name] = {
            "key": key,
            "values": values,
            "overall": scores,
            "chosen": None if errors else values[best(known_scores)],
            "trials": [f"{cell.kind}/{cell.name}" for cell in trials[line.name]],
            "error": errors[0] if errors else None,
        }
    return chosen


def results(grid: Grid, cells: Cells, chosen: dict[str, Any], outcomes: Outcomes) -> dict[str, Any]:
    """The contents of `compare.json`: everything that the settings and the rows determine."""
    records = {
        line: {
            (cell.order, cell.seed): outcome
            for cell in line_cells
            if not isinstance(outcome := outcomes[cell], str)
        }
        for line, line_cells in cells.items()
    }
    cell_results = [
        _cell(cell, outcomes[cell]) for line_cells in cells.values() for cell in line_cells
    ]
    refused = Counter(cell["line"] for cell in cell_results if cell["refused"])
    return {
        "format": FORMAT,
        "settings": grid.written,
        "baseline": grid.baseline,
        "orders": grid.orders,
        "seeds": grid.seeds,
        "choose": chosen or None,
        "lines": [{**line, "refused": refused[line["name"]]} for line in lines(grid, records)],
        "cells": cell_results,
    }


def costs(cells: Cells, outcomes: Outcomes) -> dict[str, Any]:
    """The contents of `costs.json`, which differ between identical runs: times, memory, machine."""
    all_cells = [cell for line_cells in cells.values() for cell in line_cells]
    records = {
        cell: outcome for cell in all_cells if not isinstance(outcome := outcomes[cell], str)
    }
    threads = next((cell.config.threads for cell in all_cells), None)
    return {
        "device": device(threads),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "lines": {
            line: costs_of([records[cell] for cell in line_cells if cell in records])
            for line, line_cells in cells.items()
        },
        "cells": {cell.name: record["varying"] for cell, record in records.items()},
    }


def _cell(cell: Cell, outcome: Mapping[str, Any] | str) -> dict[str, Any]:
    identity = {"line": cell.line, "order": cell.order, "seed": cell.seed, "name": cell.name}
    if isinstance(outcome, str):
        return {**identity, "error": outcome, "refused": outcome.startswith(REFUSED)}
    return {
        **identity,
        "error": None,
        "refused": False,
        **{k: v for k, v in outcome.items() if k != "varying"},
    }
