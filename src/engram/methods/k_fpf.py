"""Forgetting-prioritised fine-tuning, k times in a task."""

from typing import Any, ClassVar

from torch import nn

from engram.errors import EngramError
from engram.methods.shared.memory_steps import Burst
from engram.train.method import Family, Method, TaskContext
from engram.train.parameters import Named, snapshot


class KFPF(Method):
    """Stops k times in a task for a few steps on memory, in the modules that changed most.

        burst i of k after step floor(i N / k), N the steps of the task;   the last one at its end
        change of a module = ||w - w_start||_1 / |w|,   w_start: the weights before the task

    Each burst trains the `share` of the modules that changed most so far, for `steps` steps; the
    others keep their bits. Between bursts there is no replay (Zhao et al. 2023, 2304.04158). A
    module is what holds a weight, a LoRA pair one. The paper spaces k bursts over the whole stream
    without regard to tasks; the length of our streams is not known beforehand, so k is a task's.
    With more bursts than steps several follow each other. What we know of the paper leaves open the
    threshold, the bursts' length and their rate: ours are not theirs. Its variant with stored
    logits is left out. AdamW is new in each burst, at the rate of the training's step before it,
    without weight decay; the training's moments stay as they are.

    State: w_start while a task is learned, none after it. Old rows: needed. Cost: k `steps` steps
    a task; gradients are taken of all weights, and those of other modules dropped before clipping.

    Args:
        k: bursts in a task, >= 0.
        share: of the modules that are trained, above 0 to 1, rounded down; one at least.
        steps: of a burst, >= 0.
        rows: remembered rows a step; null is the training's batch.
        learning_rate: of the bursts, above 0; null is that of the step before a burst.
    """

    family: ClassVar[Family] = "data and schedule"
    paper: ClassVar[str] = "https://huggingface.co/papers/2304.04158"
    rehearses: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"steps": 0}

    def __init__(
        self,
        k: int = 4,
        share: float = 0.1,
        steps: int = 4,
        rows: int | None = None,
        learning_rate: float | None = None,
    ):
        if k < 0:
            raise EngramError(f"k_fpf: k must be >= 0, got {k}; 4 is a burst every quarter")
        self.k, self.burst = k, Burst("k_fpf", share, steps, rows, learning_rate)

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.start: Named = snapshot(model) if context.memory else {}
        return super().begin_task(model, context)

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        groups: Any = optimizer.param_groups  # type: ignore[union-attr]  # in on_step_end they have the next step's rate
        self.rates = {id(p): float(group["lr"]) for group in groups for p in group["params"]}

    def on_step_end(self, args, state, control, **kwargs):
        for i in range(self.k if self.context.memory else 0):
            if max(1, (i + 1) * state.max_steps // self.k) == state.global_step:
                model = kwargs["model"]
                self.burst.run(self.engine, self.context, model, self.start, i, self.rates)

    def end_task(self, model: nn.Module) -> None:
        self.start = {}
