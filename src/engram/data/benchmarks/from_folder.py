"""The rows of a benchmark task from the folder of its published form.

    long_sequence/<task>/{train,dev,test}.jsonl.gz
    superni/<task>/{train,dev,test}.jsonl.gz

They are rows of prompt and completion. The first line of a Long Sequence prompt is its instruction,
which ends in "Option: a, b, c.", the last line is "Answer:"; dev overlaps test (wholly, for five
tasks). Rows that cannot be scored are left out: those whose answer is none of the options (six of
mnli's dev rows, marked "-", which the annotators did not agree on), and of SuperNI those without
an answer (six of task511).
"""

import re
from pathlib import Path
from typing import Any

from engram.data.benchmarks import superni
from engram.data.rows import Row, as_row, read_rows
from engram.errors import EngramError


def folder_rows(
    task: str, split: str, folder: str | Path
) -> tuple[list[Row], tuple[str, ...] | None]:
    """All rows of a split, and the options of a classification task.

    Raises:
        EngramError: the file is missing or not as it should be.
    """
    if task in superni.TASKS:
        rows = read_rows(Path(folder) / "superni" / task / f"{split}.jsonl.gz", _maybe_blank)
        return [row for row in rows if row["completion"].strip()], None
    file = Path(folder) / "long_sequence" / task / f"{split}.jsonl.gz"
    rows = read_rows(file)
    options = _options(rows[0]["prompt"], str(file))
    return [row for row in rows if row["completion"] in options], options


def _maybe_blank(raw: Any, where: str) -> Row:
    blank = isinstance(raw, dict) and raw.get("completion") == ""
    return raw if blank else as_row(raw, where)


def _options(prompt: str, where: str) -> tuple[str, ...]:
    """The options as the instruction writes them; "Science or Technology" is one of agnews's."""
    found = re.search(r"Option: (.+)\.$", prompt.split("\n", 1)[0])
    if found is None:
        raise EngramError(f'{where}: the first line of a prompt must end in "Option: a, b, c."')
    return tuple(found[1].split(", "))
