"""L2 regularisation towards earlier weights."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from perdure.errors import PerdureError
from perdure.methods.shared.quadratic_pull import Parabola, QuadraticPull
from perdure.train.method import Keeps, TaskContext
from perdure.train.parameters import HEAD_NAMES, Named, old_labels, snapshot


MARK = "towards."  # before the name of the centre, in the name of an empty tensor of the state


class L2(QuadraticPull):
    """Pulls the weights towards those of the previous stage, or of the base (L2-SP).

        loss = task + strength / 2 ||w - w*||^2,   so   g += strength (w - w*)

    The gradient is added in closed form, once in each step and before clipping, so it does not
    depend on gradient accumulation. AdamW normalises it together with the task's gradient; it is
    not decoupled like weight decay. Smith et al. 2023 (2203.17269) find it better than EWC on
    pre-trained models. The pull towards the base is that of Li et al. 2018 (1802.01483). With LoRA,
    w are the factors A and B, and the base is the adapter with which the lineage began. The new
    rows of an encoder's head are not pulled.

    `towards` can be changed from `base` to `previous` while a lineage grows, but not the other way
    round, because the weights with which it began are only kept for `base`.

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
        # A state without the mark is of an older version; its centre is taken for the present one.
        known = context.state if self.stored in (self.towards, None) else {}
        if self.towards == "previous":
            is_kept = context.is_newest and bool(known or not context.state)
        else:
            is_kept = bool(known)
            begins = not context.state and (context.is_newest or context.is_first)
            if not is_kept and not begins:
                self._refuse_base()
        if not is_kept:
            self.parabola = Parabola(_without_new_rows(snapshot(model), context), None)
        return model

    def _start_anew(self) -> None:
        # The weights of the previous stage are known, whatever their shapes; those of the base not.
        if self.towards == "base":
            self._refuse_base()

    def _refuse_base(self) -> None:
        raise PerdureError(
            f"{self.label}: towards base needs the weights with which the lineage began, so it "
            "must be there from the first task on, and the adapter must keep its rank; use towards "
            "previous, or make a new lineage"
        )

    def end_task(self, model: nn.Module) -> None:
        if self.towards == "previous":
            super().end_task(model)

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {f"{MARK}{self.towards}": torch.empty(0)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        marks = [name.removeprefix(MARK) for name in state if name.startswith(MARK)]
        self.stored = next(iter(marks), None)
        super().load_state_dict({n: t for n, t in state.items() if not n.startswith(MARK)})


def _without_new_rows(weights: Named, context: TaskContext) -> Named:
    """The weights without the rows that an encoder's head has grown for this task."""
    labels = old_labels(context)
    return {
        name: tensor if labels is None or name not in HEAD_NAMES else tensor[: int(labels)]
        for name, tensor in weights.items()
    }
