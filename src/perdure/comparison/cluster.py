"""Cells as tasks of a Ray cluster, whose machines all see the folder and the rows."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perdure.comparison.cell import Cell
from perdure.comparison.processes import Running
from perdure.errors import PerdureError


PASSED_ON = ("PERDURE_", "HF_")  # of the environment


def starter(address: str) -> Callable[[Cell, Path], Running]:
    """What starts a cell on the cluster at an address; `local` is one of this machine's own.

    Raises:
        PerdureError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise PerdureError(
            "ray: it is not installed; pip install '.[ray]', or leave --ray out"
        ) from error
    try:
        ray.init(address, log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise PerdureError(f"ray: no cluster at {address!r} ({why}); start it there") from error
    environment = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}

    def start(cell: Cell, folder: Path) -> Running:
        threads = cell.config.threads or 1
        given = (str(cell.file(folder, ".yaml")), str(cell.file(folder, ".log")), os.getcwd())
        task = ray.remote(num_cpus=threads, max_retries=0)(run_there)
        return _Task(ray, task.remote(*given, {**environment, "OMP_NUM_THREADS": str(threads)}))

    return start


def run_there(settings: str, log: str, place: str, environment: dict[str, str]) -> int:
    """`perdure run` in a process of a worker's machine; its exit status."""
    command = [sys.executable, "-m", "perdure.cli", "run", settings, "--json"]
    with (Path(place) / log).open("w", encoding="utf-8") as said:
        return subprocess.run(
            command,
            cwd=place,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
        ).returncode


class _Task:
    """A cell on the cluster, as `run_all` looks at it."""

    def __init__(self, ray: Any, task: Any):
        self.ray, self.task = ray, task

    def poll(self) -> int | None:
        done, _ = self.ray.wait([self.task], timeout=0)
        return self.wait() if done else None

    def terminate(self) -> None:
        self.ray.cancel(self.task)  # the worker hears the keyboard, and ends its process

    def wait(self) -> int:
        try:
            return self.ray.get(self.task)
        except self.ray.exceptions.RayError:  # cancelled, or its machine is gone
            return 1
