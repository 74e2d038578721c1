"""The plan of a lineage: its checked settings, and the objects made from them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from perdure import processes
from perdure.config import Config
from perdure.data.task import Task
from perdure.lineage.loading import BaseLoader
from perdure.measure.guard.lm_eval_tasks import LmEvalTasks
from perdure.models.base import BaseInfo
from perdure.train.arguments import training_arguments
from perdure.train.method import Method


@dataclass
class Plan:
    """The checked settings of a lineage, and the objects made from them for all of its tasks.

    Args:
        config: the settings, with those that depend on the base filled in.
        info: the base.
        methods: the methods. They serve all stages, and `begin_task` resets them.
        made_arguments: the training arguments made so far, with their `training:` and
            `checkpoint_every`.
        loader: loads the base once for all stages.
        lm_eval: the tasks of lm-eval that the guard runs, None if there are none.
        tasks: the tasks of the verb, in order.
        notes: notes and warnings about the tasks, one line each.
    """

    config: Config
    info: BaseInfo
    methods: list[Method]
    made_arguments: list[tuple[dict[str, Any], int, TrainingArguments]]
    loader: BaseLoader
    lm_eval: LmEvalTasks | None = None
    tasks: list[Task] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def arguments(
        self, training: dict[str, Any], checkpoint_every: int | None = None
    ) -> TrainingArguments:
        """Return the Trainer's arguments for these settings, which are made only once.

        Raises:
            PerdureError: `TrainingArguments` refuses a key or a value.
        """
        every = self.config.checkpoint_every if checkpoint_every is None else checkpoint_every
        if processes.shard_weights():
            every = 0  # checkpoints of sharded optimizers could not be read by other processes
        for made_training, made_every, arguments in self.made_arguments:
            if (made_training, made_every) == (training, every):
                return arguments
        arguments = training_arguments(training, Path("unused"), 0, every)
        self.made_arguments.append((training, every, arguments))
        return arguments
