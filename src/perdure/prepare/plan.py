"""What the settings of a lineage mean, made once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from perdure.config import Config
from perdure.data.task import Task
from perdure.lineage.loading import BaseLoader
from perdure.models.base import BaseInfo
from perdure.train.arguments import training_arguments
from perdure.train.method import Method


@dataclass
class Plan:
    """The checked settings of a lineage, and what is made of them for all of its tasks.

    `config` is complete: what the base decides is filled in. `methods` are those of every stage;
    each begins a task anew. `loader` loads the base once for all stages. `tasks` are those of the
    verb, in their order, and `notes` are what is to be said of them before they are learned, a line
    each.
    """

    config: Config
    info: BaseInfo
    methods: list[Method]
    made: list[tuple[dict[str, Any], int, TrainingArguments]]
    loader: BaseLoader
    tasks: list[Task] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def arguments(
        self, training: dict[str, Any], checkpoint_every: int | None = None
    ) -> TrainingArguments:
        """The Trainer's arguments under a `training:`, made once for each that differs.

        Raises:
            PerdureError: a key or a value that TrainingArguments refuse.
        """
        every = self.config.checkpoint_every if checkpoint_every is None else checkpoint_every
        for known, known_every, arguments in self.made:
            if (known, known_every) == (training, every):
                return arguments
        arguments = training_arguments(training, Path("unused"), 0, every)
        self.made.append((training, every, arguments))
        return arguments
