"""L2 regularisation towards earlier weights."""

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from engram.errors import EngramError
from engram.methods.shared.quadratic_pull import pull
from engram.train.method import Family, Method, TaskContext
from engram.train.parameters import Named, snapshot


class L2(Method):
    """Pulls the weights towards those of the previous stage, or of the base (L2-SP).

        loss = task + strength / 2 ||w - w*||^2,   so   g += strength (w - w*)

    added to the gradient in closed form, once a step and before clipping: accumulation does not
    scale it. Under AdamW it is part of what Adam normalises, not decoupled as weight decay is.
    Smith et al. 2023 (2203.17269) find it ahead of EWC on pre-trained models; the towards-the-base
    form is Li et al. 2018 (1802.01483). With LoRA, w are the factors A and B, and the base is the
    adapter that the lineage began with. The new rows of an encoder's head are free.

    State: w*, of the trainable weights' size, O(1) in tasks. Old rows: none. Towards `previous` the
    first task is plain fine-tuning; towards `base` the pull begins with it.

    Args:
        strength: of the pull, >= 0; the derivative's factor, there is no 1/2 to be added.
        towards: `previous` or `base`.
    """

    family: ClassVar[Family] = "regularisation"
    paper: ClassVar[str] = "https://huggingface.co/papers/2203.17269"
    follows: ClassVar[bool] = True
    end_phase: ClassVar[Literal[2]] = 2
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}

    def __init__(self, strength: float = 0.1, towards: Literal["previous", "base"] = "previous"):
        if strength < 0:
            raise EngramError(f"l2: strength must be >= 0, got {strength}; 0 is no pull")
        self.strength, self.towards = strength, towards

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.centre: Named = dict(context.state)
        if not self.centre and self.towards == "base":
            self.centre = snapshot(model)
        return super().begin_task(model, context)

    def edit_gradients(self, model: nn.Module) -> None:
        pull(model, self.strength, None, self.centre)

    def end_task(self, model: nn.Module) -> None:
        if self.towards == "previous":
            self.centre = self.engine.next_start()

    def state_dict(self) -> dict[str, Tensor]:
        return self.centre

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.centre = dict(state)
