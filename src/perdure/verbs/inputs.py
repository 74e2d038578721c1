"""What a stage learns from, which every process of a launch reads for itself."""

from collections.abc import Sequence
from typing import Any

from perdure.config import Config
from perdure.data.rows import Row
from perdure.data.task import Task
from perdure.lineage.lineage import Lineage
from perdure.lineage.sources import remembered
from perdure.models.layout import GENERAL
from perdure.train.dev_settings import for_task, with_strategy


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
