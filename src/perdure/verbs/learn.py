"""`learn`: one more task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from perdure.data.task import Task
from perdure.lineage.files import locked
from perdure.lineage.lineage import Lineage
from perdure.prepare import prepare_learn
from perdure.say import Say
from perdure.train.tracking import Tracked
from perdure.verbs.advance import advance


def learn(
    path: str | Path,
    task: Task,
    data: str | Path | None,
    callbacks: Sequence[TrainerCallback],
    say: Say,
) -> dict[str, Any]:
    """`perdure.api.learn`: one more task; return the ledger's line of the new stage.

    The same call again goes on where it was stopped; if the newest stage has learned just this
    task from just these rows, there is nothing to do and its line is returned.

    Raises:
        PerdureError: not a lineage, a second writer, another base, or rows the model cannot take.
    """
    lineage = Lineage(path)
    plan = prepare_learn(lineage, task)
    with locked(lineage.path), Tracked(lineage.config.training, lineage.path) as tracked:
        lineage = Lineage(path)
        lineage.tidy()
        last = lineage.stages[-1]["task"] if lineage.stages else {}
        same = (task.name, task.train.sha256, task.training)
        if last and same == (last["name"], last["train"]["sha256"], last.get("training", {})):
            say(f"{task.name}: learned already, as stage {lineage.head}")
            return lineage.stages[-1]
        for line in plan.notes:
            say(line)
        callbacks = [tracked, *callbacks]
        return advance(lineage, plan, [task], data=data, callbacks=callbacks, say=say)
