"""The published benchmarks, by name. Their rows are not part of Perdure.

The rows are read from a folder in their published form (`from_folder`), which is an argument or
the environment's PERDURE_DATA. Without a folder they are read from the original datasets on the hub
(`from_hub`). The two forms have the same answers and sizes, but not the same rows, so scores should
only be compared within one form.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from perdure.data.benchmarks import long_sequence, standard_cl, superni
from perdure.data.benchmarks.from_folder import folder_rows
from perdure.data.benchmarks.from_hub import hub_rows
from perdure.data.benchmarks.recipes import RECIPES
from perdure.data.rows import Row
from perdure.data.task import Split, Task, limit_rows
from perdure.errors import PerdureError, nearest


Form = Literal["folder", "hub"]
ORDERS = standard_cl.ORDERS | long_sequence.ORDERS | superni.ORDERS
TASKS = frozenset(task for order in ORDERS.values() for task in order)
SPLITS = ("train", "dev", "test")
FOLDER = "name their folder with --data FOLDER or the environment's PERDURE_DATA"


def benchmark_tasks(
    name: str,
    data: str | Path | None = None,
    rows: dict[str, int] | None = None,
    seed: int = 0,
    instruction: bool = True,
    splits: Collection[str] = SPLITS,
) -> list[Task]:
    """Read the tasks of a benchmark in one of its published orders.

    Args:
        name: the name of the order, one of `ORDERS`, such as "standard_cl_1".
        data: the folder with the rows. None means PERDURE_DATA, or the hub if that is not set.
        rows: how many rows of a split to draw, such as {"train": 500}. Other splits are whole.
        seed: the seed of that draw.
        instruction: whether prompts keep their first line (instruction and options) and their last
            ("Answer:"). Without them a prompt is only its text, as an encoder needs it.
        splits: the splits to read, which must include "train".

    Raises:
        PerdureError: the name, a split or the folder is unknown, or the rows cannot be read or do
            not have the expected form.
    """
    if name not in ORDERS:
        raise PerdureError(f"no benchmark is named {name!r}; {nearest(name, ORDERS)}")
    return [
        benchmark_task(
            task, data=data, rows=rows, seed=seed, instruction=instruction, splits=splits
        )
        for task in ORDERS[name]
    ]


def benchmark_task(
    task: str,
    data: str | Path | None = None,
    rows: dict[str, int] | None = None,
    seed: int = 0,
    instruction: bool = True,
    splits: Collection[str] = SPLITS,
) -> Task:
    """Read one task of a benchmark, such as "dbpedia"; the arguments are as in `benchmark_tasks`.

    Raises:
        PerdureError: as in `benchmark_tasks`.
    """
    _check(task, TASKS)
    limits = rows or {}
    for split in limits:
        if split not in SPLITS:
            raise PerdureError(f"rows: {split!r} is not a split; {nearest(split, SPLITS)}")
    form: Form = "folder" if _folder(data) else "hub"
    try:
        opened = {
            split: _open(
                task,
                split,
                limit=limits.get(split),
                seed=seed,
                instruction=instruction,
                data=data,
                form=form,
            )
            for split in splits
        }
    except PerdureError as error:
        if form == "folder":
            raise
        raise PerdureError(
            f"{task}: {error}; or, for the benchmark's own rows, {FOLDER}"
        ) from error
    train, dev, test = (opened.get(split, (None, None))[0] for split in SPLITS)
    assert train is not None
    return Task(
        name=task,
        train=train,
        dev=dev,
        test=test,
        metric=superni.metric(task) if task in superni.TASKS else "exact_match",
        options=opened["train"][1],
    )


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
    """Read one split of one task.

    The split's source holds all of the arguments except the folder, which may move.

    Args:
        task: the name of the task.
        split: train, dev or test.
        limit: how many rows to draw; None for all.
        seed: the seed of that draw.
        instruction: as in `benchmark_tasks`.
        data: the folder with the rows; None for PERDURE_DATA.
        form: whether the rows are read from the folder or from the hub.
        revision: the revision of the dataset on the hub.

    Raises:
        PerdureError: as in `benchmark_tasks`, or the task has no such split.
    """
    _check(task, TASKS)
    _check(split, SPLITS)
    opened, _ = _open(
        task,
        split,
        limit=limit,
        seed=seed,
        instruction=instruction,
        data=data,
        form=form,
        revision=revision,
    )
    if opened is None:
        raise PerdureError(f"{task}: its {form} form has no {split} rows; hold out some train rows")
    return opened


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
    """Return a split, or None if the task does not have it, and the options in its instruction."""
    if not instruction and task in superni.TASKS:
        raise PerdureError(
            f"{task}: without its definition, a SuperNI task cannot be distinguished from the "
            "others; leave out instruction: false"
        )
    settings: dict[str, Any] = {"limit": limit, "seed": seed, "instruction": instruction}
    rows: Sequence[Row]
    if form == "folder":
        folder = _folder(data)
        if not folder:
            raise PerdureError(f"the benchmarks' rows are not part of Perdure; {FOLDER}")
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
    return data or os.environ.get("PERDURE_DATA")


def _check(name: str, valid: Sequence[str] | frozenset[str]) -> None:
    if name in ORDERS:
        raise PerdureError(f"{name} is an order of benchmark tasks; write tasks: {name}")
    if name not in valid:
        raise PerdureError(f"no benchmark has {name!r}; {nearest(name, valid)}")


def _spaced(row: Row) -> Row:
    """Move the space between prompt and answer to the answer, as tokens begin with a space."""
    if row["prompt"].endswith("\n"):
        return row
    completion = f" {row['completion'].lstrip(' ')}"
    return {**row, "prompt": row["prompt"].rstrip(" "), "completion": completion}


def _bare(prompt: str) -> str:
    """Remove the instruction and "Answer:" from a prompt."""
    lines = prompt.split("\n")[1:]
    return "\n".join(lines).strip().removesuffix("\nAnswer:").strip()
