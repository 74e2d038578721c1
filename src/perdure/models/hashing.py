"""The SHA-256 of files, which is computed once a process.

Everything that a verb uses of a lineage or of its base is hashed before it is used. A file is read
in pieces, so a large one takes no memory, and it is not read again as long as its size and its
times show that it is the same.
"""

import hashlib
import os
import time
from pathlib import Path


# A file may be changed twice within one tick of the clock that stamps it. The hash of a file is
# remembered only if its last change is older than this, in seconds.
SETTLED = 2.0
_known: dict[tuple[int, ...], str] = {}


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        times = status.st_mtime_ns, status.st_ctime_ns
        key = status.st_dev, status.st_ino, status.st_size, *times
        if key not in _known:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if time.time() - max(times) / 1e9 < SETTLED:
                return sha256
            _known[key] = sha256
    return _known[key]


def hash_again() -> None:
    """Forget all hashes, so that files are read again, which finds what the disk has changed."""
    _known.clear()
