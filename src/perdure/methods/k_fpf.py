"""Forgetting-prioritised fine-tuning, several times in a task."""

from typing import Any, ClassVar

from torch import nn

from perdure.errors import PerdureError
from perdure.methods.shared.memory_steps import MemorySteps
from perdure.train.method import Family, Keeps, Method, TaskContext
from perdure.train.parameters import Named, snapshot


class KFPF(Method):
    """Stops k times in a task for a few steps on memory, in the modules that changed most.

        the i-th of k stops comes after step floor(i N / k), with N steps in the task
        change of a module = ||w - w_start||_1 / |w|,   w_start: the weights before the task

    At each stop the `share` of the modules that changed most so far is trained for `steps` steps;
    the other modules do not change. Nothing is rehearsed between the stops (Zhao et al. 2023,
    2304.04158). A module is any part of the model that holds a weight; the two matrices of a LoRA
    pair are one module. It cannot be combined with `slao`, which rotates every A before a task.

    The paper spaces its k stops over the whole stream, without regard to tasks. Here the length of
    a stream is not known beforehand, so k is the number of stops in one task. The last stop is at
    the end of the task; if there are more stops than steps, several follow one another. The
    threshold, the number of steps and their rate are not in the parts of the paper that we know, so
    the defaults are ours. The paper's variant with stored logits is left out. Each stop uses a new
    AdamW without weight decay, at the rate of the training step before the stop; the moments of the
    training's optimizer do not change.

    State: w_start while a task is learned, none after it. Old rows: needed. Cost: k times `steps`
    steps in a task. Gradients are computed for all weights; those of the other modules are dropped
    before clipping.

    Args:
        k: the number of stops in a task, >= 0.
        share: the share of the modules to train, above 0 to 1, rounded down to at least one module.
        steps: the number of steps at each stop, >= 0.
        rows: the number of remembered rows in a step; null uses that of a full training step.
        learning_rate: the rate of these steps, above 0; null uses that of the training step before
            the stop.
    """

    family: ClassVar[Family] = "data and schedule"
    paper: ClassVar[str] = "https://huggingface.co/papers/2304.04158"
    rehearses: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"steps": 0}
    keeps: ClassVar[Keeps] = Keeps(second_loss=0.5, keywords={"learning_rate": 0.005})

    def __init__(
        self,
        k: int = 4,
        share: float = 0.1,
        steps: int = 4,
        rows: int | None = None,
        learning_rate: float | None = None,
    ):
        if k < 0:
            raise PerdureError(
                f"k_fpf: k must be >= 0, got {k}; with 4 it stops at every quarter of a task"
            )
        self.k = k
        self.memory_steps = MemorySteps(
            method="k_fpf", share=share, steps=steps, rows=rows, rate=learning_rate
        )

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.start: Named = snapshot(model) if context.memory else {}
        return super().begin_task(model, context)

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        # In `on_step_end`, the groups already have the rate of the next step.
        groups: Any = optimizer.param_groups  # type: ignore[union-attr]
        self.rates = {id(p): float(group["lr"]) for group in groups for p in group["params"]}

    def on_step_end(self, args, state, control, **kwargs):
        for i in range(self.k if self.context.memory else 0):
            if max(1, (i + 1) * state.max_steps // self.k) == state.global_step:
                model = kwargs["model"]
                self.memory_steps.run(
                    self.engine, self.context, model, self.start, number=i, rates=self.rates
                )

    def end_task(self, model: nn.Module) -> None:
        self.start = {}
