"""What a stage learns from, which every process of a launch reads for itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perdure.config import Config
from perdure.data.rows import Row
from perdure.data.task import Task
from perdure.lineage.lineage import Lineage
from perdure.lineage.sources import remembered
from perdure.methods import names_in
from perdure.models.layout import GENERAL, METHOD_STATE
from perdure.say import Say
from perdure.train.dev_settings import for_task, with_strategy
from perdure.train.method import Method


def training_of(config: Config, learned: Sequence[Task]) -> dict[str, Any]:
    """Return the `training:` of a stage, which says when dev rows are measured."""
    training = for_task(config.training, learned[-1].training)
    return with_strategy(training, any(task.dev is not None for task in learned))


def memory_of(lineage: Lineage, general: list[Row], with_old_tasks: bool) -> dict[str, list[Row]]:
    """Return the rows that a stage can rehearse, by task: general rows, and those of old tasks."""
    memory = {GENERAL: general} if general else {}
    if with_old_tasks:
        memory |= {entry["task"]["id"]: remembered(lineage, entry) for entry in lineage.standing}
    return memory


def states_of(lineage: Lineage, methods: Sequence[Method], say: Say) -> dict[str, Path]:
    """Return, by the name of a method, the folder of the newest active stage that it took part in.

    It is not always the previous stage: `adopt`, `merge` and other methods make stages without it.
    """
    folders = {}
    for method in methods:
        learned_with = (e for e in lineage.stages[::-1] if method.name in names_in(e["method"]))
        entry = next(learned_with, None)
        if entry is None or METHOD_STATE not in entry["files"]:
            continue
        if METHOD_STATE not in lineage.dropped_files(entry):
            file = lineage.file(entry, METHOD_STATE)
            assert file is not None
            folders[method.name] = file.parent
        elif type(method).state_dict is not Method.state_dict:
            say(
                f"warning: {method.label}: its state of stage {entry['stage']} was deleted by "
                "`perdure compact`, so it begins without it"
            )
    return folders
