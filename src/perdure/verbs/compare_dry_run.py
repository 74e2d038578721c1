"""`compare --dry-run` estimates the cost of a comparison from a trial of one cell per line."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from perdure.comparison.cell import Cell
from perdure.comparison.grid import Grid
from perdure.comparison.matched import matched
from perdure.comparison.results import choices
from perdure.comparison.trials import Trials
from perdure.say import Say, silent
from perdure.verbs.compare import Bases, check, check_place, chosen_settings
from perdure.verbs.costs import check_disk
from perdure.verbs.dry_run import dry_run as dry_run_of


COSTS = ("steps", "seconds", "trainable", "disk_bytes")


def dry_run(grid: Grid, jobs: int, say: Say) -> dict[str, Any]:
    """Return what is left to run, and an estimate of its cost.

    `run --dry-run` is applied to the first cell of each line that is not finished. Its time, memory
    and disk space are taken for the line's other cells as well, and for its trials, which are a
    little shorter. `seconds` assumes that `jobs` cells at the same time are as fast as one. If
    every line is finished, device, threads and memory are None.
    """
    check_place(grid.folder, jobs)
    grid = matched(grid)
    trials = Trials(grid, grid.choose) if grid.choose else None
    bases: Bases = {}
    for line in check(grid, trials, bases):
        say(line)
    chosen = _chosen(grid, trials) if trials else {}
    entries, estimate = [], dict.fromkeys(("device", "threads", "peak_memory_bytes"))
    for number, line in enumerate(grid.lines, 1):
        line_trials = trials.cells.get(line.name, []) if trials else []
        cells = grid.cells(line, chosen_settings(chosen, line.name))
        left = 0 if line.constant else _left([*cells, *line_trials], grid)
        counts = {"cells": len(cells), "trials": len(line_trials), "to_run": left}
        if not left:
            entries.append({"name": line.name, **counts, **dict.fromkeys(COSTS, 0)})
            continue
        say(f"trying {line.name}, {number} of {len(grid.lines)}")  # a line may take a minute
        estimate = _estimate(cells[0], grid, bases)
        entries.append({"name": line.name, **counts, **{key: estimate[key] for key in COSTS}})
    total = {"disk_bytes": sum(line["disk_bytes"] * line["to_run"] for line in entries)}
    check_disk(grid.folder, total)
    return {
        "folder": str(grid.folder),
        "device": estimate["device"],
        "threads": estimate["threads"],
        "jobs": jobs,
        "lines": entries,
        "peak_memory_bytes": estimate["peak_memory_bytes"],  # of the process, so of all lines
        "to_run": sum(line["to_run"] for line in entries),
        "seconds": sum(line["seconds"] * line["to_run"] for line in entries) / jobs,
        **total,
    }


def _left(cells: Sequence[Cell], grid: Grid) -> int:
    """Return how many cells are not finished."""
    return sum(cell.record(grid.folder) is None for cell in cells)


def _chosen(grid: Grid, trials: Trials) -> dict[str, Any]:
    """Return the choices of the finished trials, with which existing cells were run."""
    cells = [cell for line_cells in trials.cells.values() for cell in line_cells]
    return choices(grid, trials.cells, {c: c.record(grid.folder) or "not run yet" for c in cells})


def _estimate(cell: Cell, grid: Grid, bases: Bases) -> dict[str, Any]:
    """Return the dry run of a cell, as if nothing of it had been run."""
    config = replace(cell.config, lineage=str(grid.folder / "dry-run"))
    return dry_run_of(config, silent, info=bases[config.base, config.revision])
