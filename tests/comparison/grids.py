"""A grid over a tiny base and two tasks, and cells that run in this process."""

from pathlib import Path
from typing import Any

import yaml

from perdure import api
from perdure.comparison.cell import Cell
from perdure.comparison.grid import Grid, read_grid
from perdure.config import load_config
from perdure.errors import RefusedError
from place import setting_for


def grid_yaml(folder: Path, **more: Any) -> Path:
    """`grid.yaml` in a folder, over a base and rows that lie beside it."""
    setting = setting_for("causal", folder, n=16) | {
        "max_length": 64,
        "lineage": str(folder / "out"),
        "scoring": {"mode": "options"},
    }
    setting |= {"grid": {"method": ["sequential", "replay"], "seed": [0, 1]}, **more}
    (folder / "grid.yaml").write_text(yaml.safe_dump(setting))
    return folder / "grid.yaml"


def simple(**more: Any) -> dict[str, Any]:
    """A grid that is only read."""
    grid = {"method": ["sequential", "replay"], "seed": [0, 1]}
    return {"tasks": "generated", "lineage": "out", "grid": grid, **more}


def read(**more: Any) -> Grid:
    return read_grid(simple(**more))


class Ended:
    """A cell that ran in this process."""

    def __init__(self, status: int):
        self.status = status

    def poll(self) -> int:
        return self.status

    def terminate(self) -> None: ...

    def kill(self) -> None: ...

    def wait(self) -> int:
        return self.status


def run_here(cell: Cell, folder: Path) -> Ended:
    """Runs the cell's YAML; what goes wrong ends up in its log, as from a process."""
    try:
        api.run(load_config(cell.file(folder, ".yaml")))
    except RefusedError as error:
        cell.file(folder, ".log").write_text(f"perdure: refused: {error}\n")
        return Ended(3)
    except ValueError as error:
        cell.file(folder, ".log").write_text(f"perdure: error: {error}\n")
        return Ended(2)
    return Ended(0)
