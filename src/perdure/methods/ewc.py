"""Elastic weight consolidation."""

from typing import ClassVar, Literal

from torch import nn

from perdure.errors import PerdureError
from perdure.methods.shared.fisher import drawn_rows, fisher, relative
from perdure.methods.shared.quadratic_pull import QuadraticPull
from perdure.train.method import Keeps
from perdure.train.parameters import Named


class EWC(QuadraticPull):
    """Pulls each weight towards its old values, more strongly if the old answers depend on it.

        loss = task + strength / 2 sum_j F_j (w_j - w*_j)^2,   g += strength F (w - w*)
        F_t = fisher_t / (mean of fisher_t over all trained weights)   for each task t

    fisher_t is the diagonal of the Fisher information of log p(y | x), summed over a row's tokens.
    Its labels y are drawn from the model, because with the training labels it vanishes on a task
    that the model fits. The papers do not divide by its mean, which differs by orders of magnitude
    between bases: their lambda is our strength divided by that mean. A weight of average F is
    pulled as by `l2` with the same strength. The gradient is added in closed form, before clipping.

    With `each` (Kirkpatrick et al. 2017, 1612.00796) every task has its own penalty. Their sum is
    one parabola, so only (sum F_t, sum F_t w*_t) is stored. With `online` (Schwarz et al. 2018,
    1805.06370) F <- decay F + F_t, around the newest weights; the decay is applied once, at the end
    of a task. In implementations without the factor 1/2, lambda is half of our strength.

    State: two tensors of the trainable weights' size, O(1) in tasks, for both. Old rows: none.
    Cost: `rows` forward and backward passes after each task, one row at a time.

    Args:
        strength: lambda times the mean of F, >= 0.
        tasks: `online` or `each`.
        decay: the factor on the old tasks' F at the end of a task (`online`), 0 to 1.
        rows: how many rows of the task are drawn to measure its F; all of them if it has fewer.
    """

    paper: ClassVar[str] = "https://huggingface.co/papers/1612.00796"
    keeps: ClassVar[Keeps] = Keeps(share=0.5, second_loss=0.4)

    def __init__(
        self,
        strength: float = 1.0,
        tasks: Literal["online", "each"] = "online",
        decay: float = 1.0,
        rows: int = 128,
    ):
        centre: Literal["newest", "each"] = "newest" if tasks == "online" else "each"
        super().__init__(strength, decay=decay, centre=centre)
        if rows < 1:
            raise PerdureError(f"ewc: rows must be >= 1, got {rows}")
        self.rows = rows

    def why_not_sharded(self) -> str | None:
        return None

    def measure_precision(self, model: nn.Module) -> Named:
        rows = drawn_rows(self.engine.train_dataset, self.rows, self.context.seed)
        return relative(fisher(self.engine, model, rows, self.context.seed))
