"""The folders of a stage that is not finished: its checkpoints, and the files that it will have.

They are in `.work/` of the lineage. `PERDURE_WORK` names another folder for the checkpoints, which
may be on another disk. The files of the stage stay in `.work/`, because they are renamed when the
stage is committed.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from perdure.disk import check_folder, check_tree, remove
from perdure.lineage.names import WORK
from perdure.seeds import digest


class WorkFolders(NamedTuple):
    """The folder of a task's checkpoints, and the folder to create for the stage's files."""

    checkpoints: Path
    stage: Path


def work_folders(lineage: Path, first_line: Mapping[str, Any], name: str, key: str) -> WorkFolders:
    """Return the working folders of an unfinished stage, and delete those of any other stage.

    Args:
        lineage: the lineage's folder.
        first_line: the first line of its ledger.
        name: the name of the stage.
        key: the hash of everything that the stage depends on. The same command therefore finds its
            own checkpoints again, and a different command starts anew.

    Raises:
        PerdureError: the checkpoints have a symbolic link in them.
    """
    inner_name = f"{name}-{key[:16]}"
    places = _places(lineage, first_line)
    for place in places:
        check_folder(place)
        for other in place.glob("*"):
            if other.name != inner_name:
                remove(other)
        check_tree(place / inner_name)
        (place / inner_name).mkdir(parents=True, exist_ok=True)
    return WorkFolders(places[-1] / inner_name, places[0] / inner_name / "stage")


def remove_work(lineage: Path, first_line: Mapping[str, Any]) -> None:
    """Delete the working folders of a lineage whose stage is finished."""
    for place in _places(lineage, first_line):
        check_folder(place)
        shutil.rmtree(place, ignore_errors=True)  # the stage is committed, with or without it


def _places(lineage: Path, first_line: Mapping[str, Any]) -> list[Path]:
    """Return `.work/` and, if `PERDURE_WORK` is set, the lineage's own folder in that one."""
    places = [lineage / WORK]
    if elsewhere := os.environ.get("PERDURE_WORK"):
        place = lineage.resolve()
        own_name = f"{place.name}-{digest(str(place), first_line)[:16]}"
        places.append(Path(elsewhere).expanduser().absolute() / own_name)
    return places
