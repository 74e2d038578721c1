"""`learn` adds one task to a lineage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from perdure import processes
from perdure.data.task import Task
from perdure.errors import PerdureError
from perdure.lineage.files import locked
from perdure.lineage.lineage import Lineage
from perdure.prepare import prepare_learn
from perdure.say import Say
from perdure.train.tracking import Tracked
from perdure.verbs.advance import advance
from perdure.verbs.follow import follow
from perdure.verbs.inputs import has_tested, scored_otherwise


def learn(
    path: str | Path,
    task: Task,
    data: str | Path | None,
    callbacks: Sequence[TrainerCallback],
    say: Say,
    full: bool = False,
) -> dict[str, Any]:
    """Learn one more task and return the new stage's line of the ledger.

    After an interruption, the same call continues. If the newest stage has already learned this
    task from the same rows, nothing is done and its line is returned.

    Raises:
        PerdureError: the folder is not a lineage, another process is writing to it, the base has
            changed, or the model cannot learn the rows.
    """
    lineage = Lineage(path)
    plan = prepare_learn(lineage, task)
    if not processes.is_main():
        with Tracked(lineage.config.training, lineage.path) as tracked:
            return follow(lambda: Lineage(path), plan, [plan.tasks], [tracked, *callbacks]).stages[
                -1
            ]
    with (
        processes.leading(say),
        locked(lineage.path),
        Tracked(lineage.config.training, lineage.path) as tracked,
    ):
        planned, lineage = lineage.settings, Lineage(path)
        if lineage.settings != planned:
            raise PerdureError(f"{path}: its settings have just changed; repeat the command")
        lineage.tidy()
        (task,) = plan.tasks
        if lineage.stages and has_learned(lineage.stages[-1]["task"], task):
            say(f"{task.name}: already learned, as stage {lineage.head}")
            if not has_tested(lineage.stages[-1]["task"], task):
                say(
                    f"{scored_otherwise(task.name, lineage.head)}; to change them, go back with "
                    f"`perdure revert {path}` and learn the task again"
                )
            return lineage.stages[-1]
        for line in plan.notes:
            say(line)
        callbacks = [tracked, *callbacks]
        return advance(lineage, plan, [task], data=data, callbacks=callbacks, say=say, full=full)


def has_learned(described: dict[str, Any], task: Task) -> bool:
    """Return whether a stage has learned the task as it is now; `described` is in the ledger."""
    dev = described.get("dev", {}).get("sha256")
    return (
        task.name == described["name"]
        and task.train.sha256 == described["train"]["sha256"]
        and task.training == described.get("training", {})
        and (task.dev.sha256 if task.dev else None) == dev
    )
