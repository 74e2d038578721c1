"""Says in one line why something cannot be written, and deletes what was begun of it.

Not every library raises OSError: safetensors has an error of its own, and PyTorch a RuntimeError.
"""

import errno
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from perdure.disk import check_file, open_file, remove, usual_modes
from perdure.errors import PerdureError


REASONS = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not be so large here",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "the operation is not permitted",
    errno.EIO: "the disk reports an error",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EBUSY: "it is in use",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
}
# In messages of safetensors: "... (os error 28)" and "Os { code: 28, ...".
NUMBER = re.compile(r"(?:os error |code: )(\d+)")
TORCH = ("PytorchStreamWriter failed", "unexpected pos", "file write failed", "iostream error")
UNKNOWN = "the disk is full, or the file may not be written"


def why(error: BaseException) -> str | None:
    """Return why a file cannot be written or read, None if the error is of another kind."""
    if isinstance(error, OSError):
        return REASONS.get(error.errno or 0)
    if type(error).__name__ == "SafetensorError":
        number = NUMBER.search(str(error))
        return REASONS.get(int(number[1])) if number else None
    if isinstance(error, RuntimeError) and any(text in str(error) for text in TORCH):
        return UNKNOWN
    return None


def in_one_line(error: BaseException, path: Path | str | None = None) -> str | None:
    """Return the error line, None if the error is not about a file that cannot be used.

    Args:
        error: what was raised.
        path: the file or folder, if the error does not name one.
    """
    reason = why(error)
    if reason is None:
        return None
    named = getattr(error, "filename", None) or path
    place = f"{named}: " if named else ""
    return f"{place}{reason}; fix that, and repeat the command"


@contextmanager
def writing(path: Path, unfinished: Path | None = None) -> Iterator[None]:
    """Raise one line if the block cannot write.

    Args:
        path: what the block writes, for the error line if the error itself names no file.
        unfinished: a file or folder that is deleted if the block ends with an error of any kind.

    Raises:
        PerdureError: something cannot be written.
    """
    try:
        yield
    except BaseException as error:
        if unfinished is not None:
            with suppress(OSError):
                remove(unfinished)
        line = in_one_line(error, path)
        if line is None:
            raise
        raise PerdureError(line) from error


def write_file(path: Path, content: bytes | BinaryIO) -> None:
    """Write a file atomically: a reader sees the old file or the new one, never a part.

    It is on the disk when the function returns. Nothing is written through a symbolic link: one at
    `path` is replaced by the file.

    Args:
        path: the file.
        content: its bytes, or an open file with them.

    Raises:
        PerdureError: the file cannot be written, or a folder has its name. The old one is still
            there.
    """
    if path.is_dir() and not path.is_symlink():
        raise PerdureError(f"{path}: is a folder, where a file belongs; move it away")
    new_file = path.with_name(f".{path.name}.new")
    if not new_file.is_symlink():
        check_file(new_file)
    new_file.unlink(missing_ok=True)  # of a process that was stopped
    with writing(path, unfinished=new_file):
        with open_file(new_file, "xb") as file:
            shutil.copyfileobj(io.BytesIO(content) if isinstance(content, bytes) else content, file)
            file.flush()
            os.fsync(file.fileno())
        new_file.replace(path)
    sync(path.parent)


def flush_output() -> str | None:
    """Write what is left of stdout and stderr; return the error line if that is not possible.

    The streams then lead nowhere, or Python would report the same again when the process ends.
    """
    lines = []
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            lines.append(in_one_line(error, stream.name) or "")
            with suppress(OSError, ValueError):
                stream.close()
    return next(filter(None, lines), None)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with writing(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(folder: Path, out: Path) -> None:
    """Give a complete folder its name, with all of its files on the disk.

    A folder that has the name already must be empty.
    """
    usual_modes(folder)
    for path in [*folder.rglob("*"), folder]:
        sync(path)
    if out.exists():
        out.rmdir()
    folder.rename(out)
    sync(out.parent)
