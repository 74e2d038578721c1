"""Running cells in separate processes, several at a time."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

from perdure.comparison.cell import Cell
from perdure.disk import open_file
from perdure.stopping import held


POLL = 0.1  # seconds between two checks for cells that have ended
STARTING, ENDING = 60.0, 30.0  # the most seconds that a cell may take to start and to end
ERROR = "perdure: error: "
REFUSED = "refused: "  # begins the outcome of a cell that the gate stopped
GATED = 3  # its exit status


class Running(Protocol):
    """A cell that is running, such as a `subprocess.Popen`."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


def start(cell: Cell, folder: Path) -> Running:
    """Start `perdure run` on the cell's YAML; its messages go to the cell's log.

    It stops when this process ends, in whatever way (`perdure.cli.attached`).
    """
    with open_file(cell.file(folder, ".log"), "w", encoding="utf-8") as log:
        return subprocess.Popen(
            command(cell.file(folder, ".yaml")),
            stdin=lifeline(),
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(cell.config.threads or 1)},
        )


@cache
def lifeline() -> int:
    """Return the read end of a pipe that ends with this process, which keeps its other end open."""
    return os.pipe()[0]


def command(file: Path | str) -> list[str]:
    """Return the command that runs a YAML and stops when its standard input ends (`lifeline`)."""
    return [sys.executable, "-P", "-m", "perdure.cli.attached", "run", str(file), "--json"]


def run_all(
    cells: Sequence[Cell], jobs: int, begin: Callable[[Cell], Running]
) -> Iterator[tuple[Cell, int]]:
    """Run cells, `jobs` at a time, and yield each one with its exit status when it has ended.

    When the caller leaves the loop, also because the process is asked to stop, all running cells
    are ended (`end`).
    """
    waiting, running = list(cells), dict[Cell, Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                with held(STARTING):  # a signal in between would leave the cell running
                    running[cell] = begin(cell)
            statuses = {cell: process.poll() for cell, process in running.items()}
            ended = {cell: status for cell, status in statuses.items() if status is not None}
            for cell, status in ended.items():
                del running[cell]
                yield cell, status
            if not ended:
                time.sleep(POLL)
    finally:
        end(list(running.values()))


def end(running: Sequence[Running]) -> None:
    """End cells. Each can leave a checkpoint; one that takes too long for it is killed."""
    for process in running:
        process.terminate()
    deadline = time.monotonic() + ENDING
    try:
        while any(process.poll() is None for process in running) and time.monotonic() < deadline:
            time.sleep(POLL)
    finally:  # also after a second Ctrl-C
        for process in running:
            process.kill()  # has no effect on one that has ended
        for process in running:
            process.wait()


def what_broke(cell: Cell, folder: Path, status: int) -> str:
    """The error of a cell that failed, in one line from its log."""
    log = cell.file(folder, ".log")
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if status == GATED:
        return next(line.removeprefix("perdure: ") for line in reversed(lines) if REFUSED in line)
    errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    if errors:
        return errors[-1]
    if status < 0:
        return f"ended by signal {-status}"
    return lines[-1] if lines else f"ended with status {status}"
