"""Running cells as tasks of a Ray cluster, whose machines share the folder and the rows."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perdure.comparison.cell import Cell
from perdure.comparison.processes import Running, command, end, lifeline
from perdure.disk import open_file
from perdure.errors import PerdureError, one_line


PASSED_ON = ("PERDURE_", "HF_")  # prefixes of the environment variables that workers get


def starter(address: str) -> Callable[[Cell, Path], Running]:
    """A function that starts a cell on the cluster at an address; `local` uses this machine.

    Raises:
        PerdureError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise PerdureError(
            "ray: Ray is not installed; pip install '.[ray]', or leave --ray out"
        ) from error
    try:
        ray.init(address, log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = one_line(error)
        raise PerdureError(
            f"ray: no cluster at {address!r} ({why}); start one there, or leave --ray out"
        ) from error
    environment = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}

    def start(cell: Cell, folder: Path) -> Running:
        threads = cell.config.threads or 1
        run = ray.remote(num_cpus=threads, max_retries=0)(run_on_worker)
        settings, log = str(cell.file(folder, ".yaml")), str(cell.file(folder, ".log"))
        cell_environment = {**environment, "OMP_NUM_THREADS": str(threads)}
        return _Task(ray, run.remote(settings, log, os.getcwd(), cell_environment))

    return start


def run_on_worker(settings: str, log: str, directory: str, environment: dict[str, str]) -> int:
    """Run `perdure run` in a process on a worker's machine, and return its exit status."""
    with open_file(Path(directory) / log, "w", encoding="utf-8") as log_file:
        process = subprocess.Popen(
            command(settings),
            cwd=directory,
            env={**os.environ, **environment},
            stdin=lifeline(),
            stdout=subprocess.DEVNULL,
            stderr=log_file,
        )
    try:
        return process.wait()
    finally:  # the task may be cancelled
        end([process])


class _Task:
    """A cell that runs on the cluster, in the form that `run_all` expects (`Running`)."""

    def __init__(self, ray: Any, task: Any):
        self.ray, self.task = ray, task

    def poll(self) -> int | None:
        finished, _ = self.ray.wait([self.task], timeout=0)
        return self.wait() if finished else None

    def terminate(self) -> None:
        self.ray.cancel(self.task)  # raises KeyboardInterrupt in the worker, which ends its process

    def kill(self) -> None:
        self.ray.cancel(self.task, force=True)

    def wait(self) -> int:
        try:
            return self.ray.get(self.task)
        except self.ray.exceptions.RayError:  # the task was cancelled, or its machine is lost
            return 1
