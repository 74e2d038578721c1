"""Files and folders that may be a stranger's: no link in them is followed.

A lineage may come from somebody else. A symbolic link in it could lead what Perdure reads, writes
and deletes to any place on the disk, and a named pipe could stop it for ever, so inside a lineage
both are refused. Links on the way to the lineage's folder are the user's own and are followed.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import IO, Any

from perdure.errors import PerdureError


def check_file(path: Path) -> None:
    """Check that there is a regular file, or nothing, at a path.

    Raises:
        PerdureError: there is a symbolic link, a folder or a special file.
    """
    _check(path, stat.S_ISREG, "a file")


def check_new(out: Path) -> None:
    """Check that a folder is new or empty, and that folders can be made beside it.

    What is written is made beside it and renamed, so that an empty folder is replaced: it may be
    neither a symbolic link, nor a place where a disk is mounted, nor the working folder.

    Raises:
        PerdureError: it is not, or they cannot.
    """
    if out.is_symlink():
        raise PerdureError(
            f"{out}: is a symbolic link, in whose place no folder is made; give a new folder"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PerdureError(f"{out}: exists and is not empty; give a new folder")
    is_working_folder = out.exists() and out.samefile(Path())
    if is_working_folder or os.path.ismount(out):
        what = "the working folder" if is_working_folder else "where a disk is mounted"
        raise PerdureError(f"{out}: is {what}, and cannot be replaced; give a new folder in it")
    check_can_make(out)


def check_can_make(path: Path) -> None:
    """Check that a folder can be made at a path, with the missing folders above it.

    A folder is made in the nearest one that is there, and deleted again: not everywhere do the
    modes of a folder tell whether that is possible.

    Raises:
        PerdureError: what is there is no folder, or nothing can be made in it.
    """
    if path.is_symlink():
        raise PerdureError(f"{path}: is a link to what is not there; give another place")
    above = path.absolute().parent
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise PerdureError(
            f"{path}: cannot be made, because {above} is not a folder; give another place"
        )
    try:
        os.rmdir(mkdtemp(prefix=".perdure-", dir=above))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PerdureError(
            f"{path}: cannot be made, because no folder can be made in {above} ({reason}); give "
            "another place"
        ) from error


def check_folder(path: Path) -> None:
    """Check that there is a folder, or nothing, at a path.

    Raises:
        PerdureError: there is a symbolic link, a file or a special file.
    """
    _check(path, stat.S_ISDIR, "a folder")


def check_tree(folder: Path) -> None:
    """Check that there is a folder of regular files and folders, or nothing, at a path.

    Raises:
        PerdureError: it is, or contains, a symbolic link or a special file.
    """
    check_folder(folder)
    for entry in _entries(folder):
        if not entry.is_dir(follow_symlinks=False):
            check_file(Path(entry.path))


def check_inner_links(folder: Path) -> None:
    """Check that no symbolic link in a folder leads out of it.

    Raises:
        PerdureError: one does, or the folder itself is a link.
    """
    check_folder(folder)
    inside = os.path.realpath(folder) + os.sep
    for entry in _entries(folder):
        if entry.is_symlink() and not (os.path.realpath(entry.path) + os.sep).startswith(inside):
            check_file(Path(entry.path))


def _check(path: Path, is_right: Any, wanted: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise PerdureError(f"{path.parent}: is a file, and a folder is needed") from None
    if stat.S_ISLNK(mode):
        raise PerdureError(
            f"{path}: is a symbolic link, which Perdure does not follow in a folder of its own; "
            f"delete it, or put {wanted} in its place"
        )
    if not is_right(mode):
        raise PerdureError(f"{path}: is not {wanted}; move it away")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a folder, without following links."""
    waiting = [str(folder)] if folder.is_dir() else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                yield entry


def open_file(path: Path, mode: str, **settings: Any) -> IO[Any]:
    """Open a regular file as the built-in `open` does, but not through a symbolic link.

    Raises:
        PerdureError: there is a symbolic link or a special file at the path.
    """
    return open(path, mode, opener=_opener, **settings)


def _opener(path: str, flags: int) -> int:
    try:  # O_NONBLOCK only matters for a named pipe, which would wait for another process
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EEXIST, errno.EISDIR):
            check_file(Path(path))
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        check_file(Path(path))
        raise PerdureError(f"{path}: is not a file; move it away")
    return descriptor


def remove(path: Path) -> None:
    """Delete a file, a symbolic link (not what it points to) or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fresh_folder(path: Path) -> None:
    """Create an empty folder in place of what a stopped run may have left there."""
    remove(path)
    path.mkdir(parents=True)


def usual_modes(folder: Path) -> None:
    """Make the files below a folder as readable and writable as the folder is.

    A new folder has the mode that the umask allows. Files may have a stricter one: safetensors
    makes its files readable only for their owner.
    """
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for entry in _entries(folder):
        if not entry.is_file(follow_symlinks=False):
            continue
        if stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode) != mode:
            os.chmod(entry.path, mode)
