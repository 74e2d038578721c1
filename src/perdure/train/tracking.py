"""Logging to trackers such as TensorBoard, under names that are the same for all stages.

While a task is trained, `task/<task>/loss`, `/learning_rate` and `/grad_norm` are logged, and
`/dev_loss` and `/dev_score` when dev rows are measured. After each stage come `task/<task>/score`
of every task that was scored, which shows the forgetting of old tasks, and `continual/overall`,
`/backward_transfer`, `/forward_transfer`, `/forgetting`, `/learning_accuracy` and `/stage`. The
step counts optimizer steps over all stages. Unknown values are not logged.

The code uses accelerate's tracker classes directly: transformers' integrations rename the values
and start a new run for each Trainer, and `Accelerator(log_with=...)` would need an Accelerator of
its own next to the Trainer's.
"""

import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from transformers import TrainerCallback

from perdure import processes
from perdure.disk import check_inner_links, open_file
from perdure.errors import PerdureError, one_line
from perdure.measure.matrix import ScoreMatrix, summary
from perdure.train.arguments import tracker_names


FOLDER = "logs"  # in a lineage; no hash covers it, so it may be deleted
LOGGED = ("loss", "learning_rate", "grad_norm")
# What is measured on dev rows, under the names that it has here.
LOGGED_DEV = {"eval_loss": "dev_loss", "eval_score": "dev_score"}


class StageCallback(TrainerCallback):
    """A callback of every task's Trainer that also gets the events of a stage."""

    def begin(self, task: str, number: int, total: int | None, steps: int) -> None:
        """The stage `number` of `total` (None if unknown) begins, after `steps` optimizer steps."""

    def stage_done(
        self, task: str, scores: Mapping[str, float | None], matrix: ScoreMatrix
    ) -> None:
        """The stage is committed; `scores` are the scores measured after it, by task."""


def steps_before(timings: Mapping[str, Any], stage: int) -> int:
    """The optimizer steps of all stages before `stage`.

    Reverted stages count too, because a tracker's step must not decrease. `timings` may have an
    entry for `stage` already, from a run that stopped just before its commit.
    """
    return sum(timing.get("steps", 0) for n, timing in timings.items() if int(n) < stage)


class Tracked(StageCallback):
    """Logs to the trackers that the settings name, and closes them at the end of a `with` block.

    The trackers are opened when training begins. So a call that has nothing to learn leaves no
    files, and the Trainer has already set up accelerate's state, which trackers need.

    Args:
        training: the section `training:` of the settings, of which `report_to`, `run_name` and
            `project` are used.
        lineage: the folder of the lineage.
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
        self.step = self.offset + state.global_step  # not `offset` if a stopped run is resumed
        self._open()

    def on_step_end(self, args, state, control, **kwargs):
        self.step = self.offset + state.global_step
        if self.names and state.global_step >= state.max_steps:
            control.should_log = True  # the curve's last point; a very short task has no other

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        if "loss" in logs:  # not the summary at the end of training
            self._log({_name(self.task, key): logs[key] for key in LOGGED if key in logs})
        dev = {name: logs[key] for key, name in LOGGED_DEV.items() if key in logs}
        self._log({_name(self.task, name): value for name, value in dev.items()})

    def stage_done(self, task, scores, matrix):
        self._open()
        values = {_name(name, "score"): value for name, value in scores.items()}
        values |= {f"continual/{name}": value for name, value in summary(matrix).items()}
        self._log(values | {"continual/stage": matrix.last})

    def _log(self, values: Mapping[str, float | None]) -> None:
        known_values = {name: value for name, value in values.items() if value is not None}
        for tracker in self.trackers if known_values else ():
            tracker.log(known_values, step=self.step)

    def _open(self) -> None:
        """Start the trackers that are not started yet, in the main process only.

        Raises:
            PerdureError: a tracker that cannot start, for example because it needs a login, or a
                link that would lead its files out of the folder.
        """
        if not processes.is_main():
            return
        check_inner_links(self.folder)  # some trackers make links, to the newest run
        for name in self.names[len(self.trackers) :]:
            self.folder.mkdir(exist_ok=True)
            try:
                tracker = self._tracker(name)
                tracker.start()
            except Exception as error:  # each tracker raises errors of its own types
                why = one_line(error)
                raise PerdureError(f"training: report_to: {name} did not start: {why}") from error
            self.trackers.append(tracker)

    def _tracker(self, name: str) -> GeneralTracker:
        tracker_class, settings = LOGGER_TYPE_TO_CLASS[name], self._settings(name)
        if tracker_class.requires_logging_directory:
            run_name = _plain(self.run).strip(".")  # it becomes a folder
            return tracker_class(run_name, str(self.folder), **settings)
        return tracker_class(self.project, **settings)

    def _settings(self, name: str) -> dict[str, Any]:
        """The arguments with which a tracker continues the lineage's run, if it can do so."""
        if name == "wandb":
            file = self.folder / "wandb-id"  # a name or a path would not be unique to the lineage
            if not file.exists():
                with open_file(file, "x", encoding="utf-8") as new:
                    new.write(uuid.uuid4().hex)
            run_id = file.read_text(encoding="utf-8")
            return {"name": self.run, "resume": "allow", "id": run_id, "dir": str(self.folder)}
        return {
            "trackio": {"name": self.run, "resume": "allow"},
            "dvclive": {"dir": str(self.folder / "dvclive"), "resume": True},
            "mlflow": {"run_name": self.run},
        }.get(name, {})


def _name(task: str, key: str) -> str:
    """The name of a logged value; `reviews@3` becomes `reviews_3`, as TensorBoard would name it."""
    return f"task/{_plain(task, '/')}/{key}"


def _plain(name: str, allowed: str = "") -> str:
    """The name with "_" for all but letters, digits, "-", "." and the `allowed` characters."""
    return re.sub(rf"[^-.\w{allowed}]", "_", name)
