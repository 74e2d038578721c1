"""Forgetting-prioritised fine-tuning."""

from typing import Any, ClassVar

from torch import nn

from perdure.methods.shared.memory_steps import MemorySteps
from perdure.train.method import Family, Keeps, Method, TaskContext
from perdure.train.parameters import Named, snapshot, trained


class FPF(Method):
    """Ends a task with a few steps on remembered rows, in the modules that changed most.

        change of a module = ||w - w_start||_1 / |w|,   w_start: the weights before the task

    After the task's own training, the `share` of the modules that changed most is trained for
    `steps` steps on memory; the other modules do not change (Zhao et al. 2023, 2304.04158). A
    module is any part of the model that holds a weight: a matrix with its bias, a norm, an
    encoder's head; the two matrices of a LoRA pair are one module. The paper adds this to any other
    method: name it last in the list. It cannot be combined with `slao`, which rotates every A
    before a task.

    The paper studies vision models with batch norms, and compares the changes within tasks with
    those across task boundaries; here only the latter count. The threshold, the number of steps and
    their rate are not in the parts of the paper that we know, so the defaults are ours. Our memory
    holds no row of the task just learned; as far as we recall, the paper's buffer does. These steps
    use a new AdamW without weight decay. The training's schedule has ended before them, at zero if
    it is linear; they go through the same schedule once more.

    State: w_start while a task is learned, none after it. Old rows: needed. Cost: `steps` steps.
    Gradients are computed for all weights; those of the other modules are dropped before clipping.

    Args:
        share: the share of the modules to train, above 0 to 1, rounded down to at least one module.
        steps: the number of steps, >= 0.
        rows: the number of remembered rows in a step; null uses that of a full training step.
        learning_rate: a constant rate, above 0; null uses the training's, with its schedule.
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
        self.memory_steps = MemorySteps(
            method="fpf", share=share, steps=steps, rows=rows, rate=learning_rate
        )

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.start: Named = snapshot(model) if context.memory else {}
        return super().begin_task(model, context)

    def on_train_begin(self, args, state, control, model: Any = None, **kwargs):
        # Leave out the weights that another method of the list has frozen for this task.
        parameters = trained(model)
        self.start = {name: tensor for name, tensor in self.start.items() if name in parameters}

    def end_task(self, model: nn.Module) -> None:
        if self.context.memory:
            self.memory_steps.run(self.engine, self.context, model, self.start, number=0)
        self.start = {}
