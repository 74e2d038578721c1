"""The published benchmarks by name. Their rows are not part of Engram: they are read from a folder.

The folder is an argument, else the environment's ENGRAM_DATA, and is laid out as

    long_sequence/<task>/{train,dev,test}.jsonl.gz

with rows of prompt and completion. The first line of a prompt is its instruction, which ends in
"Option: a, b, c.", the last line is "Answer:". Dev overlaps test in the release (wholly, for five
tasks), so nothing may be chosen on dev and reported on test: hold out rows of train instead.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engram.data.benchmarks import long_sequence, standard_cl
from engram.data.rows import Row, read_rows
from engram.data.task import Split, Task, limit_rows
from engram.errors import EngramError, nearest


ORDERS = standard_cl.ORDERS | long_sequence.ORDERS
SPLITS = ("train", "dev", "test")
FOLDER = "long_sequence"  # Standard CL is four of its tasks


def benchmark_tasks(
    name: str,
    data: str | Path | None = None,
    rows: dict[str, int] | None = None,
    seed: int = 0,
    instruction: bool = True,
) -> list[Task]:
    """The tasks of a benchmark in the order that `name` stands for, such as "standard_cl_1".

    Args:
        name: one of `ORDERS`.
        data: the folder with the rows; None for ENGRAM_DATA.
        rows: how many rows of a split to draw, such as {"train": 500}; other splits are whole.
        seed: of that draw.
        instruction: without it, a prompt is its text alone, which is what an encoder needs: the
            first line (instruction and options) and the last ("Answer:") are left out.

    Raises:
        EngramError: the name, a split or the folder is unknown, or a file of rows is not as it
            should be.
    """
    if name not in ORDERS:
        raise EngramError(f"no benchmark is named {name!r}; {nearest(name, ORDERS)}")
    limits = rows or {}
    for split in limits:
        if split not in SPLITS:
            raise EngramError(f"rows: {split!r} is not a split; {nearest(split, SPLITS)}")
    tasks = []
    for task in ORDERS[name]:
        opened = {
            split: _open(task, split, limits.get(split), seed, instruction, data)
            for split in SPLITS
        }
        train, dev, test = (opened[split][0] for split in SPLITS)
        tasks.append(Task(task, train, dev, test, options=opened["train"][1]))
    return tasks


def benchmark_split(
    task: str,
    split: str,
    limit: int | None = None,
    seed: int = 0,
    instruction: bool = True,
    data: str | Path | None = None,
) -> Split:
    """One split of one task; its source says all of this but the folder, which may move.

    Rows whose answer is none of the options are left out: six of mnli's dev rows, marked "-", which
    the annotators did not agree on.
    """
    return _open(task, split, limit, seed, instruction, data)[0]


def _open(
    task: str, split: str, limit: int | None, seed: int, instruction: bool, data: str | Path | None
) -> tuple[Split, tuple[str, ...]]:
    """A split and the options that its instruction names."""
    file = _file(task, split, data)
    rows: Sequence[Row] = read_rows(file)
    options = _options(rows[0]["prompt"], str(file))
    rows = limit_rows([row for row in rows if row["completion"] in options], limit, seed)
    if not instruction:
        rows = [row | {"prompt": _bare(row["prompt"])} for row in rows]
    settings: dict[str, Any] = {"limit": limit, "seed": seed, "instruction": instruction}
    return Split(tuple(rows), {"benchmark": task, "split": split} | settings), options


def _file(task: str, split: str, data: str | Path | None) -> Path:
    folder = data or os.environ.get("ENGRAM_DATA")
    if not folder:
        raise EngramError(
            "the benchmarks' rows are not part of Engram; say where they lie with --data FOLDER "
            "or the environment's ENGRAM_DATA"
        )
    return Path(folder) / FOLDER / task / f"{split}.jsonl.gz"


def _options(prompt: str, where: str) -> tuple[str, ...]:
    """The options as the instruction writes them; "Science or Technology" is one of agnews's."""
    found = re.search(r"Option: (.+)\.$", prompt.split("\n", 1)[0])
    if found is None:
        raise EngramError(f'{where}: the first line of a prompt must end in "Option: a, b, c."')
    return tuple(found[1].split(", "))


def _bare(prompt: str) -> str:
    lines = prompt.split("\n")[1:]
    return "\n".join(lines).strip().removesuffix("\nAnswer:").strip()
