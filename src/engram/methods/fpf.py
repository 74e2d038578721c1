"""Forgetting-prioritised fine-tuning."""

from typing import Any, ClassVar

from torch import nn

from engram.methods.shared.memory_steps import Burst
from engram.train.method import Family, Method, TaskContext
from engram.train.parameters import Named, snapshot, trained


class FPF(Method):
    """Ends a task with a few steps on remembered rows, in the modules that it changed most.

        change of a module = ||w - w_start||_1 / |w|,   w_start: the weights before the task

    The `share` of the modules that changed most is trained for `steps` steps on memory, after the
    task's own training; the others keep their bits (Zhao et al. 2023, 2304.04158). A module is what
    holds a weight: a matrix with its bias, a norm, an encoder's head; a LoRA pair is one. The paper
    adds it to any method: name it behind the others. It studies vision models with batch norms, and
    compares changes within tasks and across their borders; we look across the border alone. What we
    know of it leaves open the threshold, the burst's length and its rate: ours are not theirs. Our
    memory holds no row of the task just learned; that the paper's buffer does is recalled, not
    confirmed. AdamW is new in each burst, without weight decay. The training's schedule has ended
    by then, a linear one at zero; the burst goes through it once more, over its own steps.

    State: w_start while a task is learned, none after it. Old rows: needed. Cost: `steps` steps;
    gradients are taken of all weights, and those of other modules dropped before clipping.

    Args:
        share: of the modules that are trained, above 0 to 1, rounded down; one at least.
        steps: of the burst, >= 0.
        rows: remembered rows a step; null is the training's batch.
        learning_rate: of the burst, constant, above 0; null is the training's with its schedule.
    """

    family: ClassVar[Family] = "data and schedule"
    paper: ClassVar[str] = "https://huggingface.co/papers/2304.04158"
    rehearses: ClassVar[bool] = True
    follows: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"steps": 0}

    def __init__(
        self,
        share: float = 0.1,
        steps: int = 16,
        rows: int | None = None,
        learning_rate: float | None = None,
    ):
        self.burst = Burst("fpf", share, steps, rows, learning_rate)

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.start: Named = snapshot(model) if context.memory else {}
        return super().begin_task(model, context)

    def on_train_begin(self, args, state, control, model: Any = None, **kwargs):
        moving = trained(model)  # what another method has frozen for the task is left alone
        self.start = {name: tensor for name, tensor in self.start.items() if name in moving}

    def end_task(self, model: nn.Module) -> None:
        if self.context.memory:
            self.burst.run(self.engine, self.context, model, self.start, 0)
        self.start = {}
