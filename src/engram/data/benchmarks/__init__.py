"""The published benchmarks by name. Their rows are not part of Engram.

They come from a folder of their published form (`from_folder`), which is an argument or the
environment's ENGRAM_DATA, and without one from the original datasets on the hub (`from_hub`). The
two forms have the same answers and sizes, but not the same rows: compare scores within a form.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from engram.data.benchmarks import long_sequence, standard_cl, superni
from engram.data.benchmarks.from_folder import folder_rows
from engram.data.benchmarks.from_hub import hub_rows
from engram.data.benchmarks.recipes import RECIPES
from engram.data.rows import Row
from engram.data.task import Split, Task, limit_rows
from engram.errors import EngramError, nearest


Form = Literal["folder", "hub"]
ORDERS = standard_cl.ORDERS | long_sequence.ORDERS | superni.ORDERS
TASKS = frozenset(task for order in ORDERS.values() for task in order)
SPLITS = ("train", "dev", "test")
FOLDER = "say where they lie with --data FOLDER or the environment's ENGRAM_DATA"


def benchmark_tasks(
    name: str,
    data: str | Path | None = None,
    rows: dict[str, int] | None = None,
    seed: int = 0,
    instruction: bool = True,
    splits: Collection[str] = SPLITS,
) -> list[Task]:
    """The tasks of a benchmark in the order that `name` stands for, such as "standard_cl_1".

    Args:
        name: one of `ORDERS`.
        data: the folder with the rows; None for ENGRAM_DATA, and without that the hub.
        rows: how many rows of a split to draw, such as {"train": 500}; other splits are whole.
        seed: of that draw.
        instruction: without it, a prompt is its text alone, which is what an encoder needs: the
            first line (instruction and options) and the last ("Answer:") are left out.
        splits: which files to open, "train" among them.

    Raises:
        EngramError: the name, a split or the folder is unknown, the rows cannot be had, or are not
            as they should be.
    """
    if name not in ORDERS:
        raise EngramError(f"no benchmark is named {name!r}; {nearest(name, ORDERS)}")
    settings = (data, rows, seed, instruction, splits)
    return [benchmark_task(task, *settings) for task in ORDERS[name]]


def benchmark_task(
    task: str,
    data: str | Path | None = None,
    rows: dict[str, int] | None = None,
    seed: int = 0,
    instruction: bool = True,
    splits: Collection[str] = SPLITS,
) -> Task:
    """One task of a benchmark, such as "dbpedia"; the arguments are those of `benchmark_tasks`.

    Raises:
        EngramError: as `benchmark_tasks`.
    """
    _check(task, TASKS)
    limits = rows or {}
    for split in limits:
        if split not in SPLITS:
            raise EngramError(f"rows: {split!r} is not a split; {nearest(split, SPLITS)}")
    form: Form = "folder" if _folder(data) else "hub"
    try:
        opened = {
            split: _open(task, split, limits.get(split), seed, instruction, data, form)
            for split in splits
        }
    except EngramError as error:
        if form == "folder":
            raise
        raise EngramError(f"{task}: {error}; or, for the benchmark's own rows, {FOLDER}") from error
    train, dev, test = (opened.get(split, (None, None))[0] for split in SPLITS)
    assert train is not None
    metric = superni.metric(task) if task in superni.TASKS else "exact_match"
    return Task(task, train, dev, test, metric, opened["train"][1])


def benchmark_split(
    task: str,
    split: str,
    limit: int | None = None,
    seed: int = 0,
    instruction: bool = True,
    data: str | Path | None = None,
    form: Form = "folder",
    revision: str | None = None,
) -> Split:
    """One split of one task; its source says all of this but the folder, which may move.

    Raises:
        EngramError: as `benchmark_tasks`, or the task has no such split.
    """
    _check(task, TASKS)
    _check(split, SPLITS)
    made = _open(task, split, limit, seed, instruction, data, form, revision)[0]
    if made is None:
        raise EngramError(f"{task}: its {form} form has no {split} rows; hold some of train out")
    return made


def _open(
    task: str,
    split: str,
    limit: int | None,
    seed: int,
    instruction: bool,
    data: str | Path | None,
    form: Form,
    revision: str | None = None,
) -> tuple[Split | None, tuple[str, ...] | None]:
    """A split, None if the task has none, and the options that its instruction names."""
    if not instruction and task in superni.TASKS:
        raise EngramError(
            f"{task}: without its definition a SuperNI task cannot be told from the others; "
            "leave out instruction: false"
        )
    settings: dict[str, Any] = {"limit": limit, "seed": seed, "instruction": instruction}
    rows: Sequence[Row]
    if form == "folder":
        folder = _folder(data)
        if not folder:
            raise EngramError(f"the benchmarks' rows are not part of Engram; {FOLDER}")
        rows, options = folder_rows(task, split, folder)
    else:
        rows, revision = hub_rows(task, split, revision)
        options = RECIPES[task].shown() if task in RECIPES else None
        settings |= {"from": "hub", "revision": revision}
    if not rows:
        return None, options
    rows = [_spaced(row) for row in limit_rows(rows, limit, seed)]
    if not instruction:
        rows = [row | {"prompt": _bare(row["prompt"])} for row in rows]
    return Split(tuple(rows), {"benchmark": task, "split": split} | settings), options


def _folder(data: str | Path | None) -> str | Path | None:
    return data or os.environ.get("ENGRAM_DATA")


def _check(name: str, valid: Sequence[str] | frozenset[str]) -> None:
    if name in ORDERS:
        raise EngramError(f"{name} is an order of benchmark tasks; write tasks: {name}")
    if name not in valid:
        raise EngramError(f"no benchmark has {name!r}; {nearest(name, valid)}")


def _spaced(row: Row) -> Row:
    """The row with the space between prompt and answer in the answer, where tokens have it."""
    if row["prompt"].endswith("\n"):
        return row
    completion = f" {row['completion'].lstrip(' ')}"
    return {**row, "prompt": row["prompt"].rstrip(" "), "completion": completion}


def _bare(prompt: str) -> str:
    lines = prompt.split("\n")[1:]
    return "\n".join(lines).strip().removesuffix("\nAnswer:").strip()
