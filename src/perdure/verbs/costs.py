"""What the tries of a dry run say of the whole: seconds, bytes."""

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
from perdure.models.base import Base
from perdure.prepare import Plan
from perdure.verbs.counting import Count


STEPS = 3  # the first warms up, the last is where a method ends its round


@dataclass(eq=False)
class Trial(TrainerCallback):
    """One task, tried: what it holds, how long its steps and the scoring of its rows took."""

    task: str
    count: Count
    steps: int
    old_tasks: int
    step_seconds: list[float] = field(default_factory=list)
    test_rows: int = 0
    seconds_a_test_row: float = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.last = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self.step_seconds.append(now - self.last)
        self.last = now

    def tested(self, rows: int, few: Split | None, seconds: float) -> None:
        """Note how long the scoring of a few of the stage's `rows` test rows took."""
        if rows and few:
            self.test_rows = rows
            self.seconds_a_test_row = seconds / len(few.rows)

    def learning(self, period: int) -> float:
        """The seconds of all steps; the last one tried ended a round of `period` steps."""
        _, plain, last = self.step_seconds
        if period == 1:
            return self.steps * (plain + last) / 2
        return self.steps * plain + math.ceil(self.steps / period) * max(0.0, last - plain)


def costs(plan: Plan, base: Base, trials: Sequence[Trial], scored: int) -> dict[str, Any]:
    """Seconds of learning and scoring, and bytes, of all tasks; `scored` test rows are there."""
    config, period = plan.config, max(method.period for method in plan.methods)
    learning = [trial.learning(period) for trial in trials]
    scoring = _scoring(config, base, trials, scored)
    weights = [(p.numel(), p.element_size(), p.requires_grad) for p in base.model.parameters()]
    trained = sum(n for n, _, grad in weights if grad)
    stage = sum(n * size for n, size, grad in weights if grad or base.whole)
    stages = min(KEPT + 1, len(trials)) if base.whole else len(trials)
    inside = bool(config.checkpoint_every) and any(
        trial.steps > config.checkpoint_every for trial in trials
    )
    # a checkpoint holds the weights, two moments, and what the methods keep, about as much again
    checkpoints = 2 * 6 * trained * 4 if inside else 0
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
    """Note what is free where the lineage goes.

    Raises:
        PerdureError: it is too little.
    """
    place = next(p for p in [path, *path.absolute().parents] if p.exists())
    total["disk_free_bytes"] = shutil.disk_usage(place).free
    if total["disk_bytes"] > total["disk_free_bytes"]:
        needed, free = (total[k] / 2**30 for k in ("disk_bytes", "disk_free_bytes"))
        raise PerdureError(
            f"{path}: the stages need {needed:.1f} GiB and {free:.1f} GiB are free; make room, or "
            "give another folder"
        )


def _scoring(config: Config, base: Base, trials: Sequence[Trial], scored: int) -> list[float]:
    """A stage scores its own task once, twice more for forward transfer, and the older ones."""
    known = [trial.seconds_a_test_row for trial in trials if trial.test_rows]
    older = scored * (sum(known) / len(known) if known else 0.0)
    times = 1 + (2 if base.kind != "encoder" else 1) * config.scoring.forward
    seconds = []
    for i, trial in enumerate(trials):
        own = trial.test_rows * trial.seconds_a_test_row
        looks_back = config.scoring.old == "each" or i + 1 == len(trials)
        seconds.append(own * times + older * (looks_back and config.mode != "per_task"))
        older += own
    return seconds


def _peak() -> int:
    """Bytes: of the accelerator if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
