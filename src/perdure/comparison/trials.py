"""Trials: choosing a hyper-parameter on rows held out of train, before test rows are read."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from perdure.comparison.cell import Cell
from perdure.comparison.grid import Choose, Grid, Line, with_overrides
from perdure.config import load_config, read_settings
from perdure.data.opening import hold_out
from perdure.data.stream import load_stream
from perdure.data.task import Split, Task
from perdure.lineage.files import write_text
from perdure.seeds import derive, digest


SPLITS = ("train", "test")  # of a trial's tasks


class Trials:
    """The trials of a comparison: one for each line and value, on the first order.

    Their tasks are those of the order, but scored on a share of the train rows; no trial reads test
    rows. All lines use the same held-out rows, unless the grid varies the settings of rows.

    Raises:
        PerdureError: as `load_stream`, or a task has fewer than two train rows.
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
        rows_digest = digest("held out", parts, self.choose.seed, self.choose.held_out)
        if rows_digest not in self.tasks:
            self.tasks[rows_digest] = held_out(settings, self.choose.held_out)
        key, values = self.choose.trials(line.method)
        overrides = {
            "tasks": [self._described(task, rows_digest) for task in self.tasks[rows_digest]],
            "rows": {},
            "scoring.forward": False,
            "scoring.old": "last",  # OP needs no other scores
            "guard": None,
            "gate": {},
        }
        return [
            Cell(
                line=f"{line.name}, {key}={json.dumps(value)}",
                order=order,
                seed=self.choose.seed,
                settings=with_overrides(settings, {**overrides, key: value}),
                kind="trials",
                rows_digest=rows_digest,
            )
            for value in values
        ]

    def write(self) -> None:
        """Write the rows of all trials to files."""
        for rows_digest, tasks in self.tasks.items():
            for task in tasks:
                for split in SPLITS:
                    path = self._file(task, rows_digest, split)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    lines = [
                        json.dumps(row, ensure_ascii=False) + "\n"
                        for row in getattr(task, split).rows
                    ]
                    write_text(path, "".join(lines))

    def _described(self, task: Task, rows_digest: str) -> dict[str, Any]:
        """The task as an entry of `tasks:`."""
        files = {split: str(self._file(task, rows_digest, split)) for split in SPLITS}
        options = {"options": list(task.options)} if task.options else {}
        training = {"training": task.training} if task.training else {}
        return {"name": task.name, **files, "metric": task.metric, **options, **training}

    def _file(self, task: Task, rows_digest: str, split: str) -> Path:
        """The file of a split; it is numbered, because two tasks may have the same name."""
        number = next(n for n, other in enumerate(self.tasks[rows_digest], 1) if other is task)
        name = re.sub(r"[^\w.+=-]+", "-", task.name)[:80]
        folder = self.grid.folder / "trials" / f"rows-{rows_digest[:8]}"
        return folder / f"{number:02d}-{name}-{split}.jsonl"


def held_out(settings: dict[str, Any], share: float) -> list[Task]:
    """A stream's tasks, with a share of their train rows as test rows.

    Raises:
        PerdureError: as `load_stream`, or a task has too few train rows.
    """
    config, tasks = load_config(settings), []
    for task in load_stream(config, ["train"]):
        train, test = hold_out(
            Split(task.train.rows),
            share=share,
            seed=derive(config.seed, "held out", task.name),
            where=f"choose: task {task.name!r}",
        )
        tasks.append(replace(task, train=train, test=test, dev=None, options=task.answers()))
    return tasks


def best(scores: list[float]) -> int:
    """The index of the best score; of equal ones, the first."""
    return max(range(len(scores)), key=lambda i: scores[i])
