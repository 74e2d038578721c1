"""Averaging with the previous stage."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perdure.errors import PerdureError
from perdure.train.method import Family, Keeps, Method, TaskContext
from perdure.train.parameters import HEAD_NAMES, Named, known_labels, snapshot, trained


class WiSEFT(Method):
    """Moves the weights part of the way back to the previous stage after a task.

        w <- w_prev + share (w - w_prev)

    WiSE-FT (Wortsman et al. 2022, 2109.01903) averages a fine-tuned model with the model from which
    it was trained; here that is the previous stage. With a share of 1/t at stage t, w is the mean
    of all stages. The trained weights are averaged: with LoRA, these are the factors A and B, and
    their product is then not the average of the products. The new rows of an encoder's head stay as
    trained.

    State: a copy of the trained weights while a task is learned; after it only the number of an
    encoder's labels. Old rows: none. Cost: negligible. The first task is plain fine-tuning.

    Args:
        share: the share of the new weights, 0 to 1; null uses 1/t.
    """

    family: ClassVar[Family] = "data and schedule"
    paper: ClassVar[str] = "https://huggingface.co/papers/2109.01903"
    follows: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"share": 1.0}
    keeps: ClassVar[Keeps] = Keeps(share=0.5, second_loss=1.2)

    def __init__(self, share: float | None = 0.5):
        if share is not None and not 0 <= share <= 1:
            raise PerdureError(f"wise_ft: share must be from 0 to 1, got {share}")
        self.share = share

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.labels = context.state.get("labels")
        self.before: Named = snapshot(model) if context.stage > 1 else {}
        return super().begin_task(model, context)

    @torch.no_grad()
    def end_task(self, model: nn.Module) -> None:
        share = 1 / self.context.stage if self.share is None else self.share
        for name, p in trained(model).items():
            if name in self.before:
                rows = len(p)
                if self.labels is not None and name in HEAD_NAMES:
                    rows = int(self.labels)  # the old rows of a head that has grown
                p[:rows] = torch.lerp(self.before[name][:rows], p[:rows], share)
        self.before, self.labels = {}, known_labels(model).get("labels")

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.labels is None else {"labels": self.labels}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.labels = state.get("labels")
