"""Writing files so that they appear completely or not at all, by one process at a time."""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perdure.disk import check_tree, open_file
from perdure.errors import PerdureError
from perdure.models.hashing import file_hash
from perdure.parsing import in_pieces
from perdure.writing import write_file


def dump(value: Any) -> str:
    """Return a value as JSON with sorted keys, so that equal values give the same bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=2) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, atomically (`write_file`)."""
    write_file(path, text.encode())


def relative(path: str | Path, folder: str | Path) -> str:
    """Return a path relative to a folder, as the system follows it.

    After a symbolic link, `..` is the folder above the link's target. `os.path.relpath` takes it
    for the one above the link.
    """
    path = Path(path)
    is_name = path.name not in ("", "..")  # its last part, which may itself be a link, stays
    real = path.parent.resolve() / path.name if is_name else path.resolve()
    return os.path.relpath(real, Path(folder).resolve())


def hash_folder(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by relative name.

    Raises:
        PerdureError: the folder is, or contains, a symbolic link or a special file.
    """
    check_tree(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): file_hash(p) for p in files}


@contextmanager
def locked(folder: Path, what: str = "lineage") -> Iterator[None]:
    """Hold the folder's `lock` for a block. The system releases it when the process ends.

    `what` is what the folder is, for the error line.

    Raises:
        PerdureError: another process holds the lock, or it is not a file.
    """
    with open_file(folder / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PerdureError(
                f"{folder}: another process is writing to this {what}; wait until it has finished"
            ) from error
        yield


def is_locked(folder: Path) -> bool:
    """Return whether another process holds the folder's `lock`."""
    if not (folder / "lock").exists():
        return False
    with open_file(folder / "lock", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def line_count(path: Path) -> int:
    """Return how many lines a file has. It is read in pieces, as a line may have any length."""
    with path.open("rb") as file:
        return sum(piece.count(b"\n") for piece in in_pieces(file, most=sys.maxsize))
