"""The names that a lineage's folder and its ledger may have.

A stage lies in `stages/`, and a refused one in `refused/`. `schema.py` checks that a ledger names
no other folders.
"""

import re
from pathlib import Path

from perdure.disk import check_file, check_folder
from perdure.errors import PerdureError


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
