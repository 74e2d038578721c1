"""Memory aware synapses."""

from typing import ClassVar

from torch import nn

from perdure.errors import PerdureError
from perdure.methods.shared.fisher import drawn_rows, relative, sensitivity
from perdure.methods.shared.quadratic_pull import QuadraticPull
from perdure.train.method import Keeps
from perdure.train.parameters import Named


class MAS(QuadraticPull):
    """Pulls each weight towards its last value, more strongly if the outputs depend on it.

        omega_t = E_x |d ||f(x)||^2 / dw|   for each task t
        omega <- omega + omega_t / (mean of omega_t over all trained weights)
        loss = task + strength sum_j omega_j (w_j - w*_j)^2,   g += 2 strength omega (w - w*)

    with w* the weights at the start of the task (Aljundi et al. 2018, 1711.09601). f(x) are the
    logits at the positions of the answer minus their mean, which does not affect the softmax; no
    label is used. The division by the mean of omega is ours: without it, the same strength would
    pull differently on every base. Rows are processed one at a time, as in the authors' online
    form; their batched form takes the absolute value of a sum over rows.

    State: omega and omega w*, of the trainable weights' size, O(1) in tasks. Old rows: none. Cost:
    `rows` forward and backward passes after each task.

    Args:
        strength: lambda times the mean of omega, >= 0.
        rows: how many rows of the task are drawn to measure its omega; all of them if it has fewer.
    """

    paper: ClassVar[str] = "https://huggingface.co/papers/1711.09601"
    factor: ClassVar[float] = 2.0
    keeps: ClassVar[Keeps] = Keeps(share=0.8, second_loss=0.6)

    def __init__(self, strength: float = 0.1, rows: int = 128):
        super().__init__(strength)
        if rows < 1:
            raise PerdureError(f"mas: rows must be >= 1, got {rows}")
        self.rows = rows

    def why_not_sharded(self) -> str | None:
        return None

    def measure_precision(self, model: nn.Module) -> Named:
        rows = drawn_rows(self.engine.train_dataset, self.rows, self.context.seed)
        return relative(sensitivity(self.engine, model, rows, self.context.seed))
