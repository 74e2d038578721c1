"""Reading a benchmark task from the folder of its published form.

    long_sequence/<task>/{train,dev,test}.jsonl.gz
    superni/<task>/{train,dev,test}.jsonl.gz

The rows have a prompt and a completion. The first line of a Long Sequence prompt is its
instruction, which ends in "Option: a, b, c.", and the last line is "Answer:". Its dev rows overlap
its test rows (completely, for five tasks). Rows that cannot be scored are left out: in Long
Sequence those whose answer is not an option (six of mnli's dev rows, marked "-" because the
annotators did not agree), and in SuperNI those without an answer (six of task511).
"""

import re
from pathlib import Path
from typing import Any

from perdure.data.benchmarks import superni
from perdure.data.rows import Row, as_row, read_rows
from perdure.errors import PerdureError


def folder_rows(
    task: str, split: str, folder: str | Path
) -> tuple[list[Row], tuple[str, ...] | None]:
    """Read all rows of a split, and the options if it is a classification task.

    Raises:
        PerdureError: the file is missing or does not have the expected form.
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
    """Parse the options that the instruction lists, such as "Science or Technology" in agnews."""
    match = re.search(r"Option: (.+)\.$", prompt.split("\n", 1)[0])
    if match is None:
        raise PerdureError(f'{where}: the first line of a prompt must end in "Option: a, b, c."')
    return tuple(match[1].split(", "))
