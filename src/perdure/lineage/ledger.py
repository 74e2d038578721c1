"""The append-only ledger: JSON lines, each of which holds the SHA-256 of the line before it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from perdure.disk import open_file
from perdure.errors import PerdureError
from perdure.lineage.files import sync


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a ledger and check their chain of hashes.

    A last line without a newline was never committed, because the process stopped while writing it,
    and is left out.

    Raises:
        PerdureError: a line is not JSON, or its `previous` is not the hash of the line before it.
    """
    entries, previous = [], ""
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise PerdureError(
                f"{path}: line {number} is not JSON; restore it from a copy"
            ) from error
        if not isinstance(entry, dict) or entry.get("previous") != previous:
            raise PerdureError(
                f"{path}: line {number} does not follow the line before it; a line was changed or "
                "removed, restore the ledger from a copy"
            )
        entries.append(entry)
        previous = hashlib.sha256(line).hexdigest()
    return entries


def append(path: Path, entry: dict[str, Any]) -> None:
    """Append a line and wait until it is on the disk, which commits a stage."""
    lines = _whole_lines(path)
    previous = hashlib.sha256(lines[-1]).hexdigest() if lines else ""
    line = json.dumps({**entry, "previous": previous}, sort_keys=True, ensure_ascii=False)
    size = sum(len(line) + 1 for line in lines)
    with open_file(path, "r+b" if path.exists() else "xb") as file:
        file.truncate(size)  # removes an incomplete line of an earlier process
        file.seek(size)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    with open_file(path, "rb") as file:
        return file.read().split(b"\n")[:-1]
