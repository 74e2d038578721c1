"""Trials: a hyper-parameter chosen on rows held out of train, before any test row is read."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from perdure.comparison.cell import Cell
from perdure.comparison.grid import Choose, Grid, Line, laid_over
from perdure.config import load_config, read_settings
from perdure.data.stream import load_stream
from perdure.data.task import Split, Task
from perdure.errors import PerdureError
from perdure.lineage.files import write_text
from perdure.seeds import derive, digest


SPLITS = ("train", "test")


class Trials:
    """The trials of a comparison: for each line one a value, on the first order.

    Their tasks are the order's without its test rows, which no trial opens; the rows to score on
    are a share of train. Lines share these rows, unless the grid varies what they are made of.

    Raises:
        PerdureError: as `load_stream`, or a task has no two train rows.
    """

    def __init__(self, grid: Grid, choose: Choose):
        self.grid, self.choose = grid, choose
        self.tasks: dict[str, list[Task]] = {}
        self.cells = {line.name: self._of(line) for line in grid.lines if not line.constant}

    def _of(self, line: Line) -> list[Cell]:
        """The line's trials, in the order of the values."""
        order, stream = next(iter(self.grid.orders.items()))
        fixed = {"tasks": stream, "seed": self.choose.seed}
        settings = read_settings(line.settings, fixed)
        parts = {key: settings.get(key) for key in ("tasks", "rows", "instruction")}
        rows = digest("held out", parts, self.choose.seed, self.choose.held_out)
        if rows not in self.tasks:
            self.tasks[rows] = held_out(settings, self.choose.held_out)
        key, values = self.choose.trials(line.method)
        few = {
            "tasks": [self._described(task, rows) for task in self.tasks[rows]],
            "rows": {},
            "scoring.forward": False,
            "scoring.old": "last",  # all that OP needs
        }
        return [
            Cell(
                f"{line.name}, {key}={json.dumps(value)}",
                order,
                self.choose.seed,
                laid_over(settings, {**few, key: value}),
                "trials",
                rows,
            )
            for value in values
        ]

    def write(self) -> None:
        """The rows of all trials on the disk."""
        for rows, tasks in self.tasks.items():
            for task in tasks:
                for split in SPLITS:
                    path = self._file(task, rows, split)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    lines = [
                        json.dumps(row, ensure_ascii=False) + "\n"
                        for row in getattr(task, split).rows
                    ]
                    write_text(path, "".join(lines))

    def _described(self, task: Task, rows: str) -> dict[str, Any]:
        """The task as it stands under `tasks:`."""
        files = {split: str(self._file(task, rows, split)) for split in SPLITS}
        options = {"options": list(task.options)} if task.options else {}
        training = {"training": task.training} if task.training else {}
        return {"name": task.name, **files, "metric": task.metric, **options, **training}

    def _file(self, task: Task, rows: str, split: str) -> Path:
        """Numbered, since two tasks may have one name, and a name may hold what no file's may."""
        number = next(n for n, own in enumerate(self.tasks[rows], 1) if own is task)
        name = re.sub(r"[^\w.+=-]+", "-", task.name)[:80]
        place = self.grid.folder / "trials" / f"rows-{rows[:8]}"
        return place / f"{number:02d}-{name}-{split}.jsonl"


def held_out(settings: dict[str, Any], share: float) -> list[Task]:
    """A stream's tasks with a share of their train rows in the place of their test rows.

    Raises:
        PerdureError: as `load_stream`, or a task has no two train rows.
    """
    config, tasks = load_config(settings), []
    for task in load_stream(config, ["train"]):
        rows = task.train.rows
        count = max(1, round(share * len(rows)))
        if count >= len(rows):
            raise PerdureError(
                f"choose: task {task.name!r} has {len(rows)} train rows, of which {count} are to "
                "be held out; give it more, or lower held_out"
            )
        draw = random.Random(derive(config.seed, "held out", task.name))
        chosen = set(draw.sample(range(len(rows)), count))
        train, test = (
            Split(tuple(row for i, row in enumerate(rows) if (i in chosen) == out))
            for out in (False, True)
        )
        tasks.append(replace(task, train=train, test=test, dev=None, options=task.answers()))
    return tasks


def best(scores: list[float]) -> int:
    """The number of the best score, the first of equal ones."""
    return max(range(len(scores)), key=lambda i: scores[i])
