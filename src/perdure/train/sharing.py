"""How the micro-batches of a step are shared by several processes, also by others after a stop."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainingArguments

from perdure.errors import PerdureError
from perdure.train.arguments import use_one_gpu


class Shares:
    """The number of processes that a task was begun with, which decides what a step learns.

    A step has `per_device_train_batch_size` x `gradient_accumulation_steps` x processes rows. The
    number is saved with every checkpoint. Other processes that go on from it accumulate more or
    fewer micro-batches each, so that a step has the same micro-batches as before.
    """

    name = "(processes)"  # in the checkpoint; the parentheses keep it apart from methods' names

    def __init__(self, count: int):
        self.count = count

    def state_dict(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count)} if self.count > 1 else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.count = int(state.get("count", 1))

    def divided(self, args: TrainingArguments, task: str) -> TrainingArguments:
        """Return the arguments with which the present processes take the same steps.

        Raises:
            PerdureError: the micro-batches of a step cannot be divided among them.
        """
        if self.count == args.world_size:
            return args
        micro_batches = self.count * args.gradient_accumulation_steps
        each, rest = divmod(micro_batches, args.world_size)
        if rest:
            raise PerdureError(
                f"{task}: was begun by {self.count} processes, which learned {micro_batches} "
                f"micro-batches in a step, and {args.world_size} processes cannot share them; go "
                f"on with {self.count} or with 1, or delete {Path(str(args.output_dir))} to begin "
                "the task again"
            )
        divided = dataclasses.replace(args, gradient_accumulation_steps=each)
        use_one_gpu(divided)
        return divided
