"""`compare --dry-run`: what a comparison would run and cost, from a try of one cell a line."""

from dataclasses import replace
from typing import Any

from perdure.comparison.cell import Cell
from perdure.comparison.grid import Grid
from perdure.comparison.matched import matched
from perdure.comparison.results import choices
from perdure.comparison.trials import Trials
from perdure.say import Say, silent
from perdure.verbs.compare import Bases, check, check_place, laid
from perdure.verbs.costs import check_disk
from perdure.verbs.dry_run import dry_run as dry_run_of


COSTS = ("steps", "seconds", "trainable", "disk_bytes")


def dry_run(grid: Grid, jobs: int, say: Say) -> dict[str, Any]:
    """What is left to run, and about how long it takes.

    The first cell of each line is tried as `run --dry-run` does; its time, memory and disk stand
    for the line's other cells, and for its trials, which are a little shorter. `seconds` assumes
    that `jobs` cells at a time are no slower than one.
    """
    check_place(grid.folder, jobs)
    grid = matched(grid)
    trials = Trials(grid, grid.choose) if grid.choose else None
    bases: Bases = {}
    for line in check(grid, trials, bases):
        say(line)
    chosen = _chosen(grid, trials) if trials else {}
    entries, tried = [], {}
    for line in grid.lines:
        line_trials = trials.cells.get(line.name, []) if trials else []
        cells = grid.cells(line, laid(chosen, line.name))
        if line.constant:
            nothing = dict.fromkeys(("trials", "to_run", *COSTS), 0)
            entries.append({"name": line.name, "cells": len(cells), **nothing})
            continue
        tried = _try(cells[0], grid, bases)
        entries.append(
            {
                "name": line.name,
                "cells": len(cells),
                "trials": len(line_trials),
                "to_run": sum(cell.record(grid.folder) is None for cell in [*cells, *line_trials]),
                **{key: tried[key] for key in COSTS},
            }
        )
    total = {"disk_bytes": sum(line["disk_bytes"] * line["to_run"] for line in entries)}
    check_disk(grid.folder, total)
    return {
        "folder": str(grid.folder),
        "device": tried["device"],
        "threads": tried["threads"],
        "jobs": jobs,
        "lines": entries,
        "peak_memory_bytes": tried["peak_memory_bytes"],  # of the process, so of all lines
        "to_run": sum(line["to_run"] for line in entries),
        "seconds": sum(line["seconds"] * line["to_run"] for line in entries) / jobs,
        **total,
    }


def _chosen(grid: Grid, trials: Trials) -> dict[str, Any]:
    """What finished trials have chosen, which the cells that are there were run with."""
    cells = [cell for line_cells in trials.cells.values() for cell in line_cells]
    return choices(grid, trials.cells, {c: c.record(grid.folder) or "not run yet" for c in cells})


def _try(cell: Cell, grid: Grid, bases: Bases) -> dict[str, Any]:
    """The cell's own dry run, as if it began anew."""
    config = replace(cell.config, lineage=str(grid.folder / "dry-run"))
    return dry_run_of(config, silent, info=bases[config.base, config.revision])
