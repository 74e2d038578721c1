"""Checkpoints inside a task: one is used if it is complete and as it was written.

The Trainer writes most files of a checkpoint, and neither syncs nor checks them. So `seal` writes
their hashes when all of them are on the disk, and `last_checkpoint` compares them.
"""

import json
import shutil
from pathlib import Path

from perdure.models.hashing import file_hash
from perdure.parsing import read_json
from perdure.say import Say, silent
from perdure.writing import sync, write_file


HASHES = "sha256.json"  # of the other files of a checkpoint; written last


def seal(checkpoint: Path) -> None:
    """Wait until the files of a checkpoint are on the disk, and write their hashes beside them."""
    hashes = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != HASHES:
            sync(path)
            hashes[path.relative_to(checkpoint).as_posix()] = file_hash(path)
    write_file(checkpoint / HASHES, json.dumps(hashes, sort_keys=True).encode())
    sync(checkpoint.parent)


def last_checkpoint(folder: Path, say: Say = silent) -> Path | None:
    """Return the newest checkpoint that is complete and as it was written, or None.

    Newer ones are deleted: those that a process was writing when it stopped, and those that are
    damaged, which `say` reports. Later on the Trainer would take them for the newest.
    """
    complete = complete_checkpoints(folder)
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        if checkpoint in complete:
            if (damaged := damage(checkpoint)) is None:
                return checkpoint
            say(f"checkpoint of step {step_of(checkpoint)} is damaged ({damaged}) and not used")
        shutil.rmtree(checkpoint, ignore_errors=True)  # another process may do the same
    return None


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder that were written to their end, oldest first."""
    return sorted((file.parent for file in folder.glob(f"checkpoint-*/{HASHES}")), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the number at the end of a folder's name, -1 if there is none."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a sealed folder: a file is missing or was changed; or None."""
    try:
        hashes = read_json(checkpoint / HASHES)
        for name, sha256 in hashes.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if file_hash(path) != sha256:
                return f"{name} was changed"
    except (OSError, ValueError, AttributeError, TypeError):
        return f"{HASHES} was changed"
    return None
