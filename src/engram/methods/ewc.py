"""Elastic weight consolidation."""

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from engram.errors import EngramError
from engram.methods.shared.fisher import drawn_rows, fisher, relative
from engram.methods.shared.quadratic_pull import Sums, pull
from engram.train.method import Family, Method, TaskContext


class EWC(Method):
    """Pulls each weight towards its old values, the more the old answers depend on it.

        loss = task + strength / 2 sum_j F_j (w_j - w*_j)^2,   g += strength F (w - w*)
        F_t = fisher_t / (mean of fisher_t over all trained weights)   of each task t

    fisher_t is the diagonal of the Fisher information of log p(y | x), summed over a row's tokens,
    with y drawn from the model: with training labels it vanishes on a fitted task. The papers do
    not divide by its mean, which differs by orders of magnitude from base to base; their lambda is
    our strength over that mean. A weight of average F is pulled as by `l2` of the same strength.
    The gradient is added in closed form, before clipping. `each` (Kirkpatrick et al. 2017,
    1612.00796) keeps a penalty a task; their sum is one parabola, so (sum F_t, sum F_t w*_t) is all
    there is to keep. `online` (Schwarz et al. 2018, 1805.06370) keeps F <- decay F + F_t around the
    newest weights; the decay is applied once, at the end of a task. Codes without the 1/2 mean half
    of our strength.

    State: two tensors of the trainable weights' size, O(1) in tasks, both ways. Old rows: none.
    Cost: `rows` forward and backward passes after each task, one by one.

    Args:
        strength: lambda times the mean of F, >= 0.
        tasks: `online` or `each`.
        decay: of the old tasks' F at the end of a task (`online`), 0 to 1.
        rows: of the task, drawn for its F; all if it has no more.
    """

    family: ClassVar[Family] = "regularisation"
    paper: ClassVar[str] = "https://huggingface.co/papers/1612.00796"
    follows: ClassVar[bool] = True
    end_phase: ClassVar[Literal[2]] = 2
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}

    def __init__(
        self,
        strength: float = 1.0,
        tasks: Literal["online", "each"] = "online",
        decay: float = 1.0,
        rows: int = 128,
    ):
        if strength < 0 or not 0 <= decay <= 1 or rows < 1:
            raise EngramError(
                f"ewc: needs strength >= 0, 0 <= decay <= 1 and rows >= 1, got {strength}, {decay} "
                f"and {rows}"
            )
        self.strength, self.tasks, self.decay, self.rows = strength, tasks, decay, rows

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.sums = Sums(context.state)
        return super().begin_task(model, context)

    def edit_gradients(self, model: nn.Module) -> None:
        pull(model, self.strength, self.sums.precision, self.sums.moment)

    def end_task(self, model: nn.Module) -> None:
        rows = drawn_rows(self.engine.train_dataset, self.rows, self.context.seed)
        found = relative(fisher(self.engine, model, rows, self.context.seed))
        centre = self.engine.next_start()
        if self.tasks == "online":
            self.sums.move(found, centre, self.decay)
        else:
            self.sums.add(found, centre)

    def state_dict(self) -> dict[str, Tensor]:
        return self.sums.tensors()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums = Sums(state)
