"""L2 regularisation towards earlier weights."""

from typing import ClassVar, Literal

from torch import nn

from perdure.errors import PerdureError
from perdure.methods.shared.quadratic_pull import Parabola, QuadraticPull
from perdure.train.method import Keeps, TaskContext
from perdure.train.parameters import HEAD_NAMES, Named, old_labels, snapshot


class L2(QuadraticPull):
    """Pulls the weights towards those of the previous stage, or of the base (L2-SP).

        loss = task + strength / 2 ||w - w*||^2,   so   g += strength (w - w*)

    The gradient is added in closed form, once in each step and before clipping, so it does not
    depend on gradient accumulation. AdamW normalises it together with the task's gradient; it is
    not decoupled like weight decay. Smith et al. 2023 (2203.17269) find it better than EWC on
    pre-trained models. The pull towards the base is that of Li et al. 2018 (1802.01483). With LoRA,
    w are the factors A and B, and the base is the adapter with which the lineage began. The new
    rows of an encoder's head are not pulled.

    State: w*, of the trainable weights' size, O(1) in tasks. Old rows: none. With `previous`, the
    first task is plain fine-tuning; with `base`, the pull starts in the first task.

    Args:
        strength: the factor in the gradient, >= 0. In some implementations lambda is half of it.
        towards: the weights to pull towards, `previous` or `base`.
    """

    paper: ClassVar[str] = "https://huggingface.co/papers/2203.17269"
    uniform: ClassVar[bool] = True
    keeps: ClassVar[Keeps] = Keeps(share=0.8, keywords={"strength": 1.0})

    def __init__(self, strength: float = 0.1, towards: Literal["previous", "base"] = "previous"):
        super().__init__(strength)
        self.towards = towards

    def why_not_sharded(self) -> str | None:
        return None

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        model = super().begin_task(model, context)
        if self.towards == "previous":
            if not context.is_newest:  # the weights of a stage that was made without this method
                self.parabola = Parabola(_without_new_rows(snapshot(model), context), None)
        elif not context.state:
            if not context.is_newest:
                raise PerdureError(
                    f"{self.label}: towards base needs the weights with which the lineage began, "
                    "so it must be there from the first task on; use towards previous, or make a "
                    "new lineage"
                )
            self.parabola = Parabola(_without_new_rows(snapshot(model), context), None)
        return model

    def end_task(self, model: nn.Module) -> None:
        if self.towards == "previous":
            super().end_task(model)


def _without_new_rows(weights: Named, context: TaskContext) -> Named:
    """The weights without the rows that an encoder's head has grown for this task."""
    labels = old_labels(context)
    return {
        name: tensor if labels is None or name not in HEAD_NAMES else tensor[: int(labels)]
        for name, tensor in weights.items()
    }
