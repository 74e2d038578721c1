"""`compare` runs methods on the same streams and seeds, each cell in its own lineage."""

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
from perdure.disk import check_file, check_folder
from perdure.errors import PerdureError
from perdure.lineage.files import dump, locked, write_text
from perdure.models.base import BaseInfo
from perdure.models.targets import check_carries
from perdure.prepare import Plan, check_general, check_tasks, prepare
from perdure.prepare.dev import with_dev_rows
from perdure.prepare.merged import check_merge
from perdure.prepare.settings import check_values
from perdure.say import Say
from perdure.seeds import digest


# The names that the folder of a comparison may contain.
FOLDERS = {"cells", "trials"}
OURS = FOLDERS | {"lock", RESULTS, COSTS, f".{RESULTS}.new", f".{COSTS}.new"}

Begin = Callable[[Cell, Path], processes.Running]
Bases = dict[tuple[str, str | None], BaseInfo]  # by name and revision


def compare(grid: Grid, jobs: int, say: Say, begin: Begin | None) -> dict[str, Any]:
    """Run every cell that is not finished, and return the comparison. See `perdure.api.compare`.

    `begin` starts a cell. If it is None, the cell is a process on this machine.
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
            lines += _check_rows(grid, bases)  # only now, since trials must not open test rows
        for line in dict.fromkeys(lines):
            say(line)
        cells = {
            line.name: grid.cells(line, chosen_settings(chosen, line.name)) for line in grid.lines
        }
        errors = {name: choice["error"] for name, choice in chosen.items() if choice["error"]}
        outcomes = run([cell for cell in _all(cells) if cell.line not in errors])
        outcomes |= {cell: errors[cell.line] for cell in _all(cells) if cell.line in errors}
        compared, spent = results(grid, cells, chosen, outcomes), costs(cells, outcomes)
        write_text(grid.folder / RESULTS, dump(compared))
        write_text(grid.folder / COSTS, dump(spent))
    return {"folder": str(grid.folder), **compared, "costs": spent}


def _run(cells: Sequence[Cell], folder: Path, jobs: int, say: Say, begin: Begin) -> dict[Cell, Any]:
    """Run the cells that are not finished; return each cell's record, or its error as a line."""
    outcomes: dict[Cell, Any] = {cell: constant_record(cell) for cell in cells if cell.constant}
    runs = [cell for cell in cells if not cell.constant]
    outcomes |= {cell: cell.record(folder) for cell in runs}
    waiting = [cell for cell in runs if outcomes[cell] is None]
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} are already finished")
    for cell in waiting:
        cell.write_settings(folder)
    ended = processes.run_all(waiting, jobs, lambda cell: begin(cell, folder))
    for number, (cell, status) in enumerate(ended, 1):
        if status:
            outcomes[cell] = processes.what_broke(cell, folder, status)
            refused = outcomes[cell].startswith(processes.REFUSED)
            outcome_text = outcomes[cell] if refused else f"failed: {outcomes[cell]}"
        else:
            outcomes[cell] = cell.write_record(folder)
            op = outcomes[cell]["overall"]
            outcome_text = "no OP" if op is None else f"OP {op:.3f}"
        say(f"{number}/{len(waiting)} {cell.title}: {outcome_text}")
    return outcomes


def _all(cells: dict[str, list[Cell]]) -> list[Cell]:
    return [cell for line_cells in cells.values() for cell in line_cells]


def chosen_settings(chosen: dict[str, Any], line: str) -> dict[str, Any]:
    """Return the chosen hyper-parameter of a line as a setting that overrides the line's own."""
    choice = chosen.get(line)
    return {choice["key"]: choice["chosen"]} if choice and not choice["error"] else {}


def check_place(folder: Path, jobs: int) -> None:
    """Raise PerdureError if `folder` cannot hold the cells or has links, or `jobs` is below 1."""
    if jobs < 1:
        raise PerdureError(f"jobs: must be at least 1, got {jobs}")
    if folder.exists() and not (folder.is_dir() and {p.name for p in folder.iterdir()} <= OURS):
        raise PerdureError(
            f"{folder}: exists and is not a comparison; give a new folder with lineage=FOLDER"
        )
    _check_links(folder)


def _check_links(folder: Path) -> None:
    """Raise PerdureError if what has a comparison's own names is a symbolic link."""
    for name in OURS - FOLDERS:
        check_file(folder / name)
    for name in FOLDERS:
        check_folder(folder / name)
        for path in (folder / name).glob("*"):
            check = check_folder if path.is_dir() else check_file
            check(path)


def check(grid: Grid, trials: Trials | None, bases: Bases) -> list[str]:
    """Check all cells before the first one runs.

    Returns the notes and warnings about the rows. Each base that is read is stored in `bases`.

    Raises:
        PerdureError: the settings, the rows or the base of a cell are wrong.
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
        check_merge(cell.config)
        if cell.constant:
            check_answers(cell)
    if trials is None:
        return _check_rows(grid, bases)
    plan = prepared(cells[0], bases)
    lines = [line for tasks in trials.tasks.values() for line in check_tasks(plan, tasks)]
    return list(dict.fromkeys(lines))


def prepared(cell: Cell, bases: Bases) -> Plan:
    """Return the plan of a cell. Each base is read only once for all cells."""
    config = cell.config
    place = (config.base, config.revision)
    plan = prepare(config, bases.get(place))
    bases[place] = plan.info
    return plan


def _check_rows(grid: Grid, bases: Bases) -> list[str]:
    """Check that the rows of every order exist and fit the base; return notes and warnings."""
    lines = []
    for cell in grid.cells(grid.lines[0], {})[:: len(grid.seeds)]:
        plan = prepared(cell, bases)
        tasks = [with_dev_rows(plan.config, task) for task in load_stream(plan.config)]
        lines += check_tasks(plan, tasks)
    return list(dict.fromkeys(lines))
