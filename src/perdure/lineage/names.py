"""The names that a lineage's folder and its ledger may have.

A ledger may be a stranger's. What it says about files decides what is read, deleted and uploaded,
so it is checked before it is used: a stage lies in `stages/`, and a refused one in `refused/`.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from perdure.disk import check_file, check_folder
from perdure.errors import PerdureError
from perdure.printable import printable


REFUSED = "refused"  # the folder of the stages that the gate refused
STARTING_ADAPTER = "stages/0000-adapter"  # the adapter with which a lineage began, if any
STAGE = re.compile(r"stages/\d{4,}-[A-Za-z0-9._-]+")
REFUSED_STAGE = re.compile(REFUSED + r"/\d{4,}-[A-Za-z0-9._-]+")
WORK = ".work"  # the folder of an unfinished stage
NEWEST = "newest.json"  # the newest line of the ledger once more
TIMINGS = "timings.json"
FILES = ("lineage.yaml", "ledger.jsonl", NEWEST, TIMINGS, "lock")
FOLDERS = ("stages", REFUSED, WORK)


def check_own_names(folder: Path) -> None:
    """Check that what has a lineage's own names is no symbolic link, and of the right kind.

    Raises:
        PerdureError: a file is not a file, or a folder is not a folder.
    """
    for name in FILES:
        check_file(folder / name)
        check_file(folder / f".{name}.new")
    for name in FOLDERS:
        if name == WORK and (folder / name).is_symlink():
            raise PerdureError(
                f"{folder / name}: is a symbolic link, which Perdure does not follow; delete it, "
                "and name the folder for checkpoints in PERDURE_WORK instead"
            )
        check_folder(folder / name)


def check_line(entry: Mapping[str, Any], where: str) -> None:
    """Check the names in a line of the ledger.

    Args:
        entry: the line.
        where: how an error names it.

    Raises:
        PerdureError: a stage's folder or file would lie elsewhere than in the lineage's `stages/`
            or `refused/`, or a task's name has characters that a terminal obeys.
    """
    form = REFUSED_STAGE if entry.get("verb") == "refused" else STAGE
    if "folder" in entry and not _has_form(entry["folder"], form):
        _refuse(where, "folder", entry["folder"], f"a stage's folder, {_example(form)}")
    for key in ("dropped", "restored"):
        folders = entry.get(key, [])
        for folder in folders if isinstance(folders, list) else [folders]:
            if not _has_form(folder, STAGE):
                _refuse(where, key, folder, f"a stage's folder, {_example(STAGE)}")
    files = entry.get("files", {})
    for name in files if isinstance(files, Mapping) else [files]:
        if not _is_inside(name):
            _refuse(where, "files", name, "the name of a file in the stage's folder")
    others = entry.get("with", [])
    for task in [entry.get("task"), *(others if isinstance(others, list) else [])]:
        for key in ("id", "name"):
            name = task.get(key, "") if isinstance(task, Mapping) else ""
            if isinstance(name, str) and printable(name, lines=False) != name:
                _refuse(where, f"task.{key}", name, "a name without control characters")


def _has_form(folder: Any, form: re.Pattern[str]) -> bool:
    return isinstance(folder, str) and form.fullmatch(folder) is not None


def _example(form: re.Pattern[str]) -> str:
    return f"{form.pattern.partition('/')[0]}/NNNN-NAME"


def _is_inside(name: Any) -> bool:
    """Return whether a name is that of a file in or below a folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.as_posix() == name


def _refuse(where: str, key: str, value: Any, wanted: str) -> Any:
    raise PerdureError(
        f"{where}: {key} is {value!r}, not {wanted}; Perdure did not write this line, do not use "
        "the lineage"
    )
