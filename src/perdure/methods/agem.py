"""Averaged gradient episodic memory."""

from typing import Any, ClassVar

import torch
from torch import nn

from perdure.errors import PerdureError
from perdure.seeds import derive
from perdure.train.method import Family, Keeps, Method
from perdure.train.step import rows_of_a_step


class AGEM(Method):
    """Removes from the gradient the part that would raise the loss on remembered rows.

        if <g, r> < 0:   g <- g - strength <g, r> / ||r||^2  r

    where r is the gradient of remembered rows at the same weights, over all trained weights as one
    vector, before clipping (Chaudhry et al. 2019, 1812.00420). With strength 1, <g, r> = 0 after
    it. Adam divides the gradient elementwise, so its step need not be orthogonal to r. New rows are
    drawn for each step, in turn from the old tasks; the authors keep one batch for each task. If
    r = 0, g is not changed.

    State: none beyond the memory. Old rows: needed. Cost: one more forward and backward pass on
    `rows` rows in each step.

    Args:
        strength: the share of the projection, 0 to 1; the paper uses 1.
        rows: the number of remembered rows in a step; null uses that of a full training step.
    """

    family: ClassVar[Family] = "gradient and weights"
    paper: ClassVar[str] = "https://huggingface.co/papers/1812.00420"
    rehearses: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}
    keeps: ClassVar[Keeps] = Keeps(share=0.65, second_loss=0.3)

    def __init__(self, strength: float = 1.0, rows: int | None = None):
        if not 0 <= strength <= 1 or (rows is not None and rows < 1):
            raise PerdureError(
                f"agem: needs 0 <= strength <= 1 and rows >= 1, got {strength} and {rows}"
            )
        self.strength, self.rows = strength, rows

    def on_step_begin(self, args, state, control, **kwargs):
        self.step = state.global_step
        self.count = self.rows or rows_of_a_step(args)

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module) -> None:
        if not self.context.memory:
            return
        rows = self.context.memory.step(self.step, self.count)
        with torch.enable_grad():
            reference = self.engine.side_gradient(
                rows, derive(self.context.seed, "agem", self.step)
            )
        pairs = [
            (p.grad, r)
            for p, r in zip(self.engine.parameters, reference, strict=True)
            if p.grad is not None
        ]
        dot_product = sum((g.float() * r.float()).sum() for g, r in pairs)
        squared_norm = sum(r.float().square().sum() for _, r in pairs)
        if dot_product < 0 and squared_norm > 0:
            for g, r in pairs:
                g -= self.strength * dot_product / squared_norm * r
