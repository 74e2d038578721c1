"""How large the values of a Parquet file are, found out in another process.

pyarrow ends its process where the statistics of a column are damaged. So the columns are looked at
in a process that runs this file as a script: it reads the path of a file in each line, and answers
with a line of JSON.
"""

import atexit
import json
import os
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path


def unpacked_size(path: Path) -> int:
    """Return how many bytes the values of a Parquet file have, and 8 more for each of them.

    Raises:
        ValueError: what the file says of its columns is damaged.
    """
    answering = _answering(os.getpid())
    assert answering.stdin is not None
    assert answering.stdout is not None
    with suppress(BrokenPipeError):  # it has ended before
        answering.stdin.write(json.dumps(str(path.absolute())) + "\n")
        answering.stdin.flush()
    line = answering.stdout.readline()
    if not line:
        _answering.cache_clear()
        atexit.unregister(answering.communicate)
        with suppress(BrokenPipeError):
            answering.communicate()
        raise ValueError("what it says of its columns is damaged")
    answer = json.loads(line)
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["size"]


@cache
def _answering(process: int) -> subprocess.Popen[str]:
    """Start the process that answers this one, whose number is `process`; a fork has another."""
    answering = subprocess.Popen(
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(answering.communicate)
    return answering


def _size_in_columns(path: str) -> int:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        return sum(8 * chunk.num_values + chunk.total_uncompressed_size for chunk in chunks)


def _answer() -> None:
    for line in sys.stdin:
        try:
            answer = {"size": _size_in_columns(json.loads(line))}
        except Exception as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _answer()
