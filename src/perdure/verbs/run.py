"""`run` learns a stream of tasks, one stage per task."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from perdure import processes
from perdure.config import Config, deciding_keys, logging_keys
from perdure.data.stream import stages_of
from perdure.data.task import Task
from perdure.errors import PerdureError
from perdure.lineage.files import locked
from perdure.lineage.lineage import Lineage
from perdure.prepare import check_learned_rows, prepare_run
from perdure.say import Say
from perdure.train.tracking import Tracked
from perdure.verbs.advance import advance
from perdure.verbs.follow import follow
from perdure.verbs.init import begin
from perdure.verbs.inputs import has_tested, scored_otherwise


AfterStage = Callable[[int, Lineage, dict[str, Any], Task], None]


def run(
    config: Config,
    callbacks: Sequence[TrainerCallback],
    say: Say,
    after: AfterStage | None = None,
) -> Lineage:
    """Create the lineage if it does not exist, and learn a stage for each task not yet learned.

    Args:
        config: the settings.
        callbacks: callbacks of every task's Trainer.
        say: called with each note and each warning.
        after: called for each stage, when it is committed or was before: with its number in the
            stream, from 1, the lineage, its ledger line and its task.

    Raises:
        PerdureError: as for `init` and `learn`, or the settings differ from those of the existing
            lineage.
    """
    if not config.lineage:
        raise PerdureError("lineage: missing; say where the run goes, such as lineage=runs/first")
    plan = prepare_run(config)
    path, tasks = Path(config.lineage), plan.tasks
    stages = stages_of(tasks, config.mode)
    processes.meet()  # before anything is written, so that all have checked the same
    if not processes.is_main():
        with Tracked(config.training, path) as tracked:
            return follow(lambda: _opened(path, config), plan, stages, [tracked, *callbacks])
    if not (path / "lineage.yaml").exists():
        begin(path, plan, say=say)
    with locked(path), processes.leading(say), Tracked(config.training, path) as tracked:
        callbacks = [tracked, *callbacks]
        lineage = _opened(path, config)
        lineage.tidy()
        new_tasks = [learned[-1] for learned in stages]
        # Again, because another process may have changed the settings or learned meanwhile.
        lineage.check_unchanged(config, lineage.pin)
        check_learned_rows(lineage, tasks)
        for line in plan.notes:
            say(line)
        done = lineage.stages
        for entry, task in zip(done, new_tasks, strict=False):
            if not has_tested(entry["task"], task):
                say(
                    f"{scored_otherwise(task.name, entry['stage'])}; to change them, go back with "
                    f"`perdure revert {path} --to {entry['parent']}` and run it again"
                )
        open_tasks = {
            entry["task"]["id"]: task for entry, task in zip(done, new_tasks, strict=False)
        }
        if after:
            for number, entry in enumerate(done, start=1):
                after(number, lineage, entry, new_tasks[number - 1])
        for i in range(len(done), len(stages)):
            entry = advance(
                lineage,
                plan,
                stages[i],
                open_tasks=open_tasks,
                data=config.data,
                callbacks=callbacks,
                say=say,
                old=config.scoring.old == "each" or i + 1 == len(stages),
                full=i + 1 == len(stages),
                total=len(stages),
                position=i,
            )
            open_tasks[entry["task"]["id"]] = new_tasks[i]
            if after:
                plan.loader.forget()  # so that there is one model in memory at a time
                after(i + 1, lineage, entry, new_tasks[i])
    return lineage


def _opened(path: Path, config: Config) -> Lineage:
    """Return a lineage, with those settings of a run that only decide what is logged."""
    lineage = Lineage(path)
    stored = deciding_keys(lineage.config.training)
    lineage.config.training = stored | logging_keys(config.training)
    return lineage
