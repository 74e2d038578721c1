"""Averaged gradient episodic memory."""

from typing import Any, ClassVar

import torch
from torch import nn

from perdure.errors import PerdureError
from perdure.seeds import derive
from perdure.train.method import Family, Keeps, Method
from perdure.train.step import rows_of_a_step


class AGEM(Method):
    """Removes from the gradient what would raise the loss on remembered rows.

        if <g, r> < 0:   g <- g - strength <g, r> / ||r||^2  r

    where r is the gradient of remembered rows at the same weights, over all trained weights as one
    vector, before clipping (Chaudhry et al. 2019, 1812.00420). Afterwards <g, r> = 0. Adam divides
    the gradient elementwise, so its step need not be orthogonal to r. The rows are drawn anew for
    each step, taking turns over the old tasks; the authors keep one batch for each task. Where
    r = 0, g stays as it is.

    State: none beyond the memory. Old rows: needed. Cost: one more forward and backward pass of
    `rows` rows a step.

    Args:
        strength: share of the projection, 0 to 1; 1 is the paper's.
        rows: remembered rows in a step; null is as many as a full step of the training has.
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
        along = sum((g.float() * r.float()).sum() for g, r in pairs)
        length = sum(r.float().square().sum() for _, r in pairs)
        if along < 0 and length > 0:
            for g, r in pairs:
                g -= self.strength * along / length * r
