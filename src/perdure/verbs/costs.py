"""The seconds and bytes of a run, estimated from the trials of a dry run."""

import math
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from perdure.config import Config
from perdure.data.task import Split
from perdure.errors import PerdureError
from perdure.lineage.history import KEPT
from perdure.methods.shared import adapter_bank
from perdure.models.base import Base
from perdure.prepare import Plan
from perdure.verbs.counting import Count


STEPS = 3  # the first is a warm-up, and a method ends its round in the last


@dataclass(eq=False)
class TriedTask(TrainerCallback):
    """The trial of a task: its size, and the seconds of its steps and of its scoring.

    Args:
        task: the name of the task.
        count: the number of its rows and tokens.
        steps: the number of its optimizer steps in the run.
        old_tasks: the number of tasks in the memory.
        rows_a_step: the number of new rows in a step.
        padding: the share of padding among the tokens of its batches.
        padding_if_grouped: the same, if its batches had rows of about the same length.
        dev_rows: the number of dev rows that are measured while the task is learned.
        measurements: how often they are, if the task does not end early.
    """

    task: str
    count: Count
    steps: int
    old_tasks: int
    rows_a_step: int = 1
    padding: float = 0.0
    padding_if_grouped: float = 0.0
    dev_rows: int = 0
    measurements: int = 0
    step_seconds: list[float] = field(default_factory=list)
    test_rows: int = 0
    seconds_a_test_row: float = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.last = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self.step_seconds.append(now - self.last)
        self.last = now

    def tested(self, rows: int, sample: Split | None, seconds: float) -> None:
        """Record the seconds that the scoring of `sample` took, of the stage's `rows` test rows."""
        if rows and sample:
            self.test_rows = rows
            self.seconds_a_test_row = seconds / len(sample.rows)

    def learning(self, period: int) -> float:
        """Estimate the seconds of all steps and of the measurements on dev rows.

        The last trial step ended a round of `period`. A dev row takes a third of a row that is
        learned, as its forward pass is about a third of a step.
        """
        _, plain, last = self.step_seconds
        measuring = self.measurements * self.dev_rows * plain / self.rows_a_step / 3
        if period == 1:
            return self.steps * (plain + last) / 2 + measuring
        rounds = math.ceil(self.steps / period)
        return self.steps * plain + rounds * max(0.0, last - plain) + measuring


def costs(
    plan: Plan, base: Base, trials: Sequence[TriedTask], scored: int, learned: int
) -> dict[str, Any]:
    """Estimate the seconds of learning and scoring, and the bytes, of all tasks.

    Args:
        plan: the settings.
        base: the base with its adapter, after the trials.
        trials: the tasks to learn.
        scored: the number of test rows of the tasks learned so far.
        learned: the number of these tasks.
    """
    config, period = plan.config, max(method.period for method in plan.methods)
    learning = [trial.learning(period) for trial in trials]
    scoring = _scoring(config, base, trials, scored)
    weights = [(p.numel(), p.element_size(), p.requires_grad) for p in base.model.parameters()]
    trained = sum(n for n, _, grad in weights if grad)
    stage = sum(n * size for n, size, grad in weights if grad or base.whole)
    drops = base.whole and config.mode != "per_task"
    stages = min(KEPT + 1, len(trials)) if drops else len(trials)
    if any(method.reshapes for method in plan.methods):
        # A task adds its ranks to the adapter, which the newest stage has alone: that of the stage
        # before is there until the new one is complete.
        stage = round(stage * adapter_bank.rank_of_task(config) / adapter_bank.rank(base.model))
        stages = 2 * (learned + len(trials)) - 1
    has_checkpoints = bool(config.checkpoint_every) and any(
        trial.steps > config.checkpoint_every for trial in trials
    )
    # A checkpoint has the weights, two moments, and the state of the methods, which is about as
    # large as these three. There are at most two checkpoints, in fp32.
    checkpoints = 2 * 6 * trained * 4 if has_checkpoints else 0
    return {
        "parameters": sum(n for n, _, _ in weights),
        "trainable": trained,
        "steps": sum(trial.steps for trial in trials),
        "seconds_learning": [round(seconds, 2) for seconds in learning],
        "seconds_scoring": [round(seconds, 2) for seconds in scoring],
        "seconds": round(sum(learning) + sum(scoring), 2),
        "peak_memory_bytes": _peak(),
        "stage_bytes": stage,
        "disk_bytes": stage * stages + checkpoints,
    }


def check_disk(path: Path, total: dict[str, Any]) -> None:
    """Add the free disk space of the lineage's file system to `total`.

    Raises:
        PerdureError: there is not enough.
    """
    place = next(p for p in [path, *path.absolute().parents] if p.exists())
    total["disk_free_bytes"] = shutil.disk_usage(place).free
    if total["disk_bytes"] > total["disk_free_bytes"]:
        needed, free = (total[k] / 2**30 for k in ("disk_bytes", "disk_free_bytes"))
        raise PerdureError(
            f"{path}: the stages need {needed:.1f} GiB, but only {free:.1f} GiB are free; free "
            "some space or give another folder"
        )


def _scoring(config: Config, base: Base, trials: Sequence[TriedTask], scored: int) -> list[float]:
    """Estimate the seconds of scoring of each stage.

    A stage scores its own task once, twice more for forward transfer (once more for an encoder),
    and the older tasks, of which it may ask only a sample.
    """
    row_seconds = [trial.seconds_a_test_row for trial in trials if trial.test_rows]
    old_seconds = scored * (sum(row_seconds) / len(row_seconds) if row_seconds else 0.0)
    old_rows = scored
    times = 1 + (2 if base.kind != "encoder" else 1) * config.scoring.forward
    seconds = []
    for i, trial in enumerate(trials):
        new_seconds = trial.test_rows * trial.seconds_a_test_row
        scores_old = config.scoring.old == "each" or i + 1 == len(trials)
        scores_old = scores_old and config.mode != "per_task"
        share = 1.0
        if config.scoring.sample and old_rows and i + 1 < len(trials):
            share = min(1.0, config.scoring.sample / old_rows)
        seconds.append(new_seconds * times + share * old_seconds * scores_old)
        old_seconds += new_seconds
        old_rows += trial.test_rows
    return seconds


def _peak() -> int:
    """Return the peak memory in bytes: the accelerator's if there is one, else this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
