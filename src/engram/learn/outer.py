"""The outer learner: steps on memory, by an optimizer of their own, between the Trainer's steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import TrainingArguments

from engram.learn.adam import adam_tensors, load_adam_tensors
from engram.learn.methods.base import Steps, TaskContext
from engram.seeds import derive


class OuterLearner:
    """Takes the weights some steps further on memory, and leaves the training's moments alone.

    Its AdamW has the training's betas and no weight decay.

    Args:
        engine: takes the steps.
        context: of the task: its memory, and the seed of the steps.
        args: the training's own.
        steps: how many in a round.
        rate: learning rate; None is the training's.
        rows: remembered rows a step; None is the training's batch.
        shared: an optimizer to step with instead, at the rate that it has.
    """

    def __init__(
        self,
        engine: Steps,
        context: TaskContext,
        args: TrainingArguments,
        steps: int,
        rate: float | None,
        rows: int | None,
        shared: Optimizer | None = None,
    ):
        self.engine, self.context, self.steps, self.shared = engine, context, steps, shared
        self.rate = args.learning_rate if rate is None else rate
        self.rows = rows or args.per_device_train_batch_size * args.gradient_accumulation_steps
        betas = (args.adam_beta1, args.adam_beta2)
        self.optimizer = shared or torch.optim.AdamW(
            engine.parameters, self.rate, betas, args.adam_epsilon, weight_decay=0
        )

    def learn(self, number: int, schedule: float, inspect: Callable[[], Any]) -> None:
        """The steps of round `number`, from 0, at `schedule` times the rate.

        `inspect` is called in each step when its gradients are complete and not clipped yet.
        """
        for group in () if self.shared else self.optimizer.param_groups:
            group["lr"] = self.rate * schedule
        for i in range(number * self.steps, (number + 1) * self.steps):
            rows = self.context.memory.draw(i * self.rows, self.rows)
            seed = derive(self.context.seed, "recurrent_kif", i)
            self.engine.fit_step(rows, self.optimizer, seed, inspect)

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.shared else adam_tensors(self.optimizer, self.engine.parameters)

    def load(self, state: dict[str, Tensor]) -> None:
        load_adam_tensors(self.optimizer, self.engine.parameters, state)
