"""`compare`: methods on the same streams and seeds, a lineage each."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from perdure.comparison import processes
from perdure.comparison.cell import Cell
from perdure.comparison.constant import check_answers, constant_record
from perdure.comparison.grid import Grid
from perdure.comparison.matched import matched
from perdure.comparison.results import COSTS, RESULTS, choices, costs, results
from perdure.comparison.trials import Trials
from perdure.data.stream import load_stream
from perdure.errors import PerdureError
from perdure.lineage.files import dump, locked, write_text
from perdure.models.base import BaseInfo
from perdure.models.targets import check_carries
from perdure.prepare import Plan, check_general, check_tasks, prepare
from perdure.prepare.settings import check_values
from perdure.say import Say
from perdure.seeds import digest


OURS = {"cells", "trials", "lock", *(n for f in (RESULTS, COSTS) for n in (f, f".{f}.new"))}

Begin = Callable[[Cell, Path], processes.Running]
Bases = dict[tuple[str, str | None], BaseInfo]  # by name and revision


def compare(grid: Grid, jobs: int, say: Say, begin: Begin | None) -> dict[str, Any]:
    """`perdure.api.compare`: run every cell that is not finished; what all of them say together.

    `begin` starts a cell, as a process on this machine if it is None.
    """
    check_place(grid.folder, jobs)
    grid = matched(grid)
    trials = Trials(grid, grid.choose) if grid.choose else None
    bases: Bases = {}
    lines = check(grid, trials, bases)
    begin = begin or processes.start
    run = partial(_run, folder=grid.folder, jobs=jobs, say=say, begin=begin)
    grid.folder.mkdir(parents=True, exist_ok=True)
    with locked(grid.folder):
        chosen: dict[str, Any] = {}
        if trials:
            trials.write()
            chosen = choices(grid, trials.cells, run(_all(trials.cells)))
            lines += _check_rows(grid, bases)  # not before: trials open no test rows
        for line in dict.fromkeys(lines):
            say(line)
        cells = {line.name: grid.cells(line, laid(chosen, line.name)) for line in grid.lines}
        broken = {n: choice["error"] for n, choice in chosen.items() if choice["error"]}
        outcomes = run([cell for cell in _all(cells) if cell.line not in broken])
        outcomes |= {c: broken[c.line] for c in _all(cells) if c.line in broken}
        compared, spent = results(grid, cells, chosen, outcomes), costs(cells, outcomes)
        write_text(grid.folder / RESULTS, dump(compared))
        write_text(grid.folder / COSTS, dump(spent))
    return {"folder": str(grid.folder), **compared, "costs": spent}


def _run(cells: Sequence[Cell], folder: Path, jobs: int, say: Say, begin: Begin) -> dict[Cell, Any]:
    """Run those that are not finished; each with its record, or the line that tells its error."""
    outcomes: dict[Cell, Any] = {cell: constant_record(cell) for cell in cells if cell.constant}
    runs = [cell for cell in cells if not cell.constant]
    outcomes |= {cell: cell.record(folder) for cell in runs}
    waiting = [cell for cell in runs if outcomes[cell] is None]
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} are finished already")
    for cell in waiting:
        cell.write_settings(folder)
    ended = processes.run_all(waiting, jobs, lambda cell: begin(cell, folder))
    for number, (cell, status) in enumerate(ended, 1):
        if status:
            outcomes[cell] = processes.what_broke(cell, folder, status)
            outcome_text = f"broke: {outcomes[cell]}"
        else:
            outcomes[cell] = cell.write_record(folder)
            op = outcomes[cell]["overall"]
            outcome_text = "no OP" if op is None else f"OP {op:.3f}"
        say(f"{number}/{len(waiting)} {cell.title}: {outcome_text}")
    return outcomes


def _all(cells: dict[str, list[Cell]]) -> list[Cell]:
    return [cell for line_cells in cells.values() for cell in line_cells]


def laid(chosen: dict[str, Any], line: str) -> dict[str, Any]:
    """What is chosen for a line, as it is laid over its settings."""
    choice = chosen.get(line)
    return {choice["key"]: choice["chosen"]} if choice and not choice["error"] else {}


def check_place(folder: Path, jobs: int) -> None:
    """Raise PerdureError if `folder` cannot hold the cells, or `jobs` is below 1."""
    if jobs < 1:
        raise PerdureError(f"jobs: must be at least 1, got {jobs}")
    if folder.exists() and not (folder.is_dir() and {p.name for p in folder.iterdir()} <= OURS):
        raise PerdureError(
            f"{folder}: exists and is not a comparison; give a new folder with lineage=FOLDER"
        )


def check(grid: Grid, trials: Trials | None, bases: Bases) -> list[str]:
    """What can be known to be wrong with any cell, before the first one runs.

    Returns what is to be said of the rows; what is read of a base is put into `bases`.
    """
    cells = [grid.cells(line, {})[0] for line in grid.lines]
    shapes: set[str] = set()
    for cell in [*cells, *(_all(trials.cells) if trials else ())]:
        plan = prepared(cell, bases)
        check_general(plan)
        config = plan.config
        shape = digest(config.base, config.revision, config.adapter)
        if config.adapter is not None and shape not in shapes:
            check_carries(plan.info.config, plan.info.kind, config.adapter)
        shapes.add(shape)
    for cell in (cell for line in grid.lines for cell in grid.cells(line, {})):
        check_values(cell.config)
        if cell.constant:
            check_answers(cell)
    if trials is None:
        return _check_rows(grid, bases)
    plan = prepared(cells[0], bases)
    lines = [line for tasks in trials.tasks.values() for line in check_tasks(plan, tasks)]
    return list(dict.fromkeys(lines))


def prepared(cell: Cell, bases: Bases) -> Plan:
    """The plan of a cell; each base is read once for all cells."""
    config = cell.config
    place = (config.base, config.revision)
    plan = prepare(config, bases.get(place))
    bases[place] = plan.info
    return plan


def _check_rows(grid: Grid, bases: Bases) -> list[str]:
    """That the rows of every order are there and fit the base; what is to be said of them."""
    lines = []
    for cell in grid.cells(grid.lines[0], {})[:: len(grid.seeds)]:
        plan = prepared(cell, bases)
        lines += check_tasks(plan, load_stream(plan.config))
    return list(dict.fromkeys(lines))
