"""Cells in processes of their own, some at a time."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from perdure.comparison.cell import Cell


POLL = 0.1  # seconds between two looks at what has ended
ERROR = "perdure: error: "


class Running(Protocol):
    """What is known of a cell that runs; a `subprocess.Popen` is one."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def wait(self) -> int: ...


def start(cell: Cell, folder: Path) -> Running:
    """`perdure run` on the cell's YAML; what it says goes to its log."""
    with cell.file(folder, ".log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            command(cell, folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(cell.config.threads or 1)},
        )


def command(cell: Cell, folder: Path) -> list[str]:
    file = cell.file(folder, ".yaml")
    return [sys.executable, "-m", "perdure.cli", "run", str(file), "--json"]


def run_all(
    cells: Sequence[Cell], jobs: int, begin: Callable[[Cell], Running]
) -> Iterator[tuple[Cell, int]]:
    """Run cells, `jobs` at a time; each with its exit status as it ends.

    However the caller leaves the loop, at the keyboard too, none goes on after it.
    """
    waiting, running = list(cells), dict[Cell, Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[cell] = begin(cell)
            ended = [(c, s) for c, process in running.items() if (s := process.poll()) is not None]
            for cell, status in ended:
                del running[cell]
                yield cell, status
            if not ended:
                time.sleep(POLL)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def what_broke(cell: Cell, folder: Path, status: int) -> str:
    """The error of a cell that ended badly, in a line."""
    log = cell.file(folder, ".log")
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    if told:
        return told[-1]
    if status < 0:
        return f"ended by signal {-status}"
    return lines[-1] if lines else f"ended with status {status}"
