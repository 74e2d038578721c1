"""Trackers (TensorBoard and its kin) under names that stay the same over a lineage's whole life.

`task/<task>/loss`, `/learning_rate`, `/grad_norm` while a task is trained; after each stage
`task/<task>/score` of every task scored, so that old ones show their forgetting, and
`continual/overall`, `/backward_transfer`, `/forward_transfer`, `/forgetting`,
`/learning_accuracy`, `/stage`. The step counts optimizer steps over all stages. What is unknown is
left out.

Neither transformers' integrations, which rename everything and open a run for each Trainer, nor
`Accelerator(log_with=...)`, whose state must be the Trainer's own: accelerate's tracker classes.
"""

import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from transformers import TrainerCallback

from perdure.errors import PerdureError
from perdure.measure.matrix import ScoreMatrix, summary
from perdure.train.arguments import tracker_names


FOLDER = "logs"  # of a lineage: outside every hash, may be deleted
LOGGED = ("loss", "learning_rate", "grad_norm")


class StageCallback(TrainerCallback):
    """A callback of every task's Trainer that is also told what no Trainer knows."""

    def begin(self, task: str, number: int, total: int | None, steps: int) -> None:
        """Begin the stage of `task`, `number` of `total` (None if unknown), after `steps` steps."""

    def stage_done(
        self, task: str, scores: Mapping[str, float | None], matrix: ScoreMatrix
    ) -> None:
        """The stage is committed; `scores` are those measured after it, by task."""


def steps_before(timings: Mapping[str, Any], stage: int) -> int:
    """Optimizer steps of all stages before `stage`, reverted ones too: a tracker's step only grows.

    A stage's own entry may be there already, from a run that stopped just before its commit.
    """
    return sum(took.get("steps", 0) for at, took in timings.items() if int(at) < stage)


class Tracked(StageCallback):
    """The trackers of one verb's call, as a context that closes them.

    `training` is the YAML's: its `report_to`, `run_name` and `project` count here. They open when
    training begins: a call that finds nothing to do leaves no files, and the Trainer has made
    accelerate's state by then.
    """

    def __init__(self, training: Mapping[str, Any], lineage: Path):
        self.names = tracker_names(training.get("report_to"))
        self.folder = lineage / FOLDER
        self.run = str(training.get("run_name") or lineage.resolve().name)
        self.project = str(training.get("project") or "perdure")
        self.trackers: list[GeneralTracker] = []
        self.task, self.offset, self.step = "", 0, 0

    def __enter__(self) -> "Tracked":
        return self

    def __exit__(self, *error: Any) -> None:
        while self.trackers:
            self.trackers.pop().finish()

    def begin(self, task, number, total, steps):
        self.task, self.offset, self.step = task, steps, steps

    def on_train_begin(self, args, state, control, **kwargs):
        self.step = self.offset + state.global_step  # not 0 where a stopped run goes on
        self._open()

    def on_step_end(self, args, state, control, **kwargs):
        self.step = self.offset + state.global_step
        if self.names and state.global_step >= state.max_steps:
            control.should_log = True  # the end of a curve, and all of it for a very short task

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:  # not the summary at the end of training
            found = {key: logs[key] for key in LOGGED if key in logs}
            self._log({_name(self.task, key): value for key, value in found.items()})

    def stage_done(self, task, scores, matrix):
        self._open()
        values = {_name(name, "score"): value for name, value in scores.items()}
        values |= {f"continual/{name}": value for name, value in summary(matrix).items()}
        self._log(values | {"continual/stage": matrix.last})

    def _log(self, values: Mapping[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        for tracker in self.trackers:
            tracker.log(known, step=self.step)

    def _open(self) -> None:
        """Start what is not started yet.

        Raises:
            PerdureError: a tracker that cannot start, such as one that nobody has logged in to.
        """
        for name in self.names[len(self.trackers) :]:
            self.folder.mkdir(exist_ok=True)
            kind = LOGGER_TYPE_TO_CLASS[name]
            files = kind.requires_logging_directory
            # The first argument names a run for trackers that keep files, else a project.
            place = (_plain(self.run).strip("."), str(self.folder)) if files else (self.project,)
            try:
                tracker = kind(*place, **self._settings(name))
                tracker.start()
            except Exception as error:  # each has its own kinds
                why = " ".join(str(error).split())[:200]
                raise PerdureError(f"training: report_to: {name} did not start: {why}") from error
            self.trackers.append(tracker)

    def _settings(self, name: str) -> dict[str, Any]:
        """What makes a tracker go on with the lineage's run, where it can do that."""
        if name == "wandb":
            file = self.folder / "wandb-id"  # neither a path nor a name is the lineage's alone
            if not file.exists():
                file.write_text(uuid.uuid4().hex, encoding="utf-8")
            known = {"id": file.read_text(encoding="utf-8"), "dir": str(self.folder)}
            return {"name": self.run, "resume": "allow", **known}
        return {
            "trackio": {"name": self.run, "resume": "allow"},
            "dvclive": {"dir": str(self.folder / "dvclive"), "resume": True},
            "mlflow": {"run_name": self.run},
        }.get(name, {})


def _name(task: str, key: str) -> str:
    """`reviews@3` is `reviews_3`: TensorBoard would replace the sign by itself, others keep it."""
    return f"task/{_plain(task, '/')}/{key}"


def _plain(name: str, also: str = "") -> str:
    return re.sub(rf"[^-.\w{also}]", "_", name)
