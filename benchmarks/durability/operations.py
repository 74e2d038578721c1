"""Counts the file operations of this process that change something, and stops it at one of them."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any


CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Stopped(BaseException):
    """The simulated end of the process: nothing can be written after it."""


def kill() -> None:
    """End this process at once, as SIGKILL and a lost power line do."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """Simulate the end of the process."""
    raise Stopped


class Operations:
    """Counts operations on files under `folder` from `begin` on; from number `last` on it `ends`.

    Operations are those that Python's audit hooks announce (open for writing, rename, remove, make
    a folder), and fsync. The end comes before the operation.
    """

    def __init__(self, folder: str):
        self.folder = os.path.abspath(folder)
        self.count, self.last, self.active = 0, 0, False
        self.names: list[str] = []
        self.ends: Callable[[], None] = stop
        sys.addaudithook(self._audit)  # a hook cannot be removed, so it is only switched off
        self.fsync, os.fsync = os.fsync, self._fsync  # type: ignore[assignment]

    def begin(self, last: int = 0, ends: Callable[[], None] = stop) -> None:
        """Count from 0; 0 never ends."""
        self.count, self.last, self.ends, self.names, self.active = 0, last, ends, [], True

    def stop(self) -> None:
        """Count no more."""
        self.active = False

    def _fsync(self, descriptor: int) -> None:
        if self.active:
            self._next("fsync")
        self.fsync(descriptor)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active or (event != "open" and event not in CHANGES):
            return
        if not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))  # does not follow links
        if not path.startswith(self.folder):
            return
        if event == "open" and not (arguments[2] or 0) & WRITING:
            return
        self._next(f"{event} {path}")

    def _next(self, name: str) -> None:
        self.count += 1
        self.names.append(name)
        if self.last and self.count >= self.last:
            self.ends()
