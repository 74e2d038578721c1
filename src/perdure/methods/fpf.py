"""Forgetting-prioritised fine-tuning."""

from typing import Any, ClassVar

from torch import nn

from perdure.methods.shared.memory_steps import MemorySteps
from perdure.train.method import Family, Keeps, Method, TaskContext
from perdure.train.parameters import Named, snapshot, trained


class FPF(Method):
    """Ends a task with a few steps on remembered rows, in the modules that it changed most.

        change of a module = ||w - w_start||_1 / |w|,   w_start: the weights before the task

    After the task's own training, the `share` of the modules that changed most is trained for
    `steps` steps on memory; the other modules keep their bits (Zhao et al. 2023, 2304.04158). A
    module is whatever holds a weight: a matrix with its bias, a norm, an encoder's head; the two
    matrices of a LoRA pair are one module. The paper adds this to any other method: name it last in
    the list.

    The paper studies vision models with batch norms, and compares the changes within tasks and
    across their borders; here only the change across the border counts. The threshold, the number
    of steps and their rate are not in the parts of the paper that we know, so the defaults are
    ours. Our memory holds no row of the task just learned; we recall that the paper's buffer does,
    but have not confirmed it. AdamW is new for these steps and has no weight decay. The training's
    schedule has ended by then, at zero if it is linear; these steps go through it once more.

    State: w_start while a task is learned, none after it. Old rows: needed. Cost: `steps` steps.
    Gradients are taken for all weights; those of the other modules are dropped before clipping.

    Args:
        share: of the modules that are trained, above 0 to 1, rounded down; at least one is.
        steps: number of steps, >= 0.
        rows: remembered rows in a step; null is as many as a full step of the training has.
        learning_rate: a constant rate, above 0; null is the training's, with its schedule.
    """

    family: ClassVar[Family] = "data and schedule"
    paper: ClassVar[str] = "https://huggingface.co/papers/2304.04158"
    rehearses: ClassVar[bool] = True
    follows: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"steps": 0}
    keeps: ClassVar[Keeps] = Keeps(share=0.45, second_loss=1.0, keywords={"learning_rate": 0.005})

    def __init__(
        self,
        share: float = 0.1,
        steps: int = 16,
        rows: int | None = None,
        learning_rate: float | None = None,
    ):
        self.memory_steps = MemorySteps("fpf", share, steps, rows, learning_rate)

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.start: Named = snapshot(model) if context.memory else {}
        return super().begin_task(model, context)

    def on_train_begin(self, args, state, control, model: Any = None, **kwargs):
        # What another method of the list has frozen for this task is left out.
        parameters = trained(model)
        self.start = {name: tensor for name, tensor in self.start.items() if name in parameters}

    def end_task(self, model: nn.Module) -> None:
        if self.context.memory:
            self.memory_steps.run(self.engine, self.context, model, self.start, number=0)
        self.start = {}
