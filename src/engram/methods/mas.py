"""Memory aware synapses."""

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from engram.errors import EngramError
from engram.methods.shared.fisher import drawn_rows, relative, sensitivity
from engram.methods.shared.quadratic_pull import Sums, pull
from engram.train.method import Family, Method, TaskContext


class MAS(Method):
    """Pulls each weight towards its last value, the more the size of the answers depends on it.

        omega_t = E_x |d ||f(x)||^2 / dw|,   of each task t
        omega <- omega + omega_t / (mean of omega_t over all trained weights)
        g += 2 strength omega (w - w*)

    of the penalty strength omega (w - w*)^2, with w* the weights at the task's start (Aljundi et
    al. 2018, 1711.09601). f are the logits at the places of the answer, less their mean, which the
    softmax does not see; no label is looked at. The division by the mean is ours: without it the
    same strength is another pull on every base. Rows are taken one by one, as the authors' online
    form does; their batched form takes the absolute value of a sum.

    State: omega and omega w*, of the trainable weights' size, O(1) in tasks. Old rows: none. Cost:
    `rows` forward and backward passes after each task.

    Args:
        strength: lambda times the mean of omega, >= 0.
        rows: of the task, drawn for its omega; all if it has no more.
    """

    family: ClassVar[Family] = "regularisation"
    paper: ClassVar[str] = "https://huggingface.co/papers/1711.09601"
    follows: ClassVar[bool] = True
    end_phase: ClassVar[Literal[2]] = 2
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}

    def __init__(self, strength: float = 0.1, rows: int = 128):
        if strength < 0 or rows < 1:
            raise EngramError(f"mas: needs strength >= 0 and rows >= 1, got {strength} and {rows}")
        self.strength, self.rows = strength, rows

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.sums = Sums(context.state)
        return super().begin_task(model, context)

    def edit_gradients(self, model: nn.Module) -> None:
        pull(model, 2 * self.strength, self.sums.precision, self.sums.moment)

    def end_task(self, model: nn.Module) -> None:
        rows = drawn_rows(self.engine.train_dataset, self.rows, self.context.seed)
        found = relative(sensitivity(self.engine, model, rows, self.context.seed))
        self.sums.move(found, self.engine.next_start(), decay=1.0)

    def state_dict(self) -> dict[str, Tensor]:
        return self.sums.tensors()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums = Sums(state)
