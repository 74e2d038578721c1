"""Dark experience replay."""

import sys
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engram.errors import EngramError
from engram.learn.logits import Logits, squares
from engram.learn.memory import Memory
from engram.learn.methods.base import Family, Loss, Method, TaskContext
from engram.learn.precision import learned_places
from engram.learn.pull import known_labels
from engram.learn.step import rows_of_a_step
from engram.seeds import derive


class DER(Method):
    """Holds the logits on remembered rows near those of the time when their task had ended.

        g += alpha d/dw mean (z - z_then)^2 + beta d/dw task(other rows)

    with the mean over the rows' answer places and the logits kept of each, and an independent
    second draw for the task loss: DER++, or DER with beta 0 (Buzzega et al. 2020, 2004.07211). The
    authors keep all logits, as the model sees the row while it learns it; of a vocabulary we keep
    the `top_k` largest, of an encoder the labels that it knew then, of the model as the task left
    it, both times in evaluation mode. So the mean is over fewer and larger logits than theirs; the
    defaults lie in the ranges of their code for images. A row that is seen in the memory for the
    first time (of general use, say) gets the logits of the stage before.

    State: 8 bytes for each logit kept, O(remembered rows x places x top_k). Old rows: needed. Cost:
    two more forward and backward passes of `rows` rows a step, one with beta 0; one forward pass of
    the newest task's remembered rows.

    Args:
        alpha: weight of the logits' distance, >= 0.
        beta: weight of the task loss on remembered rows, >= 0.
        top_k: logits kept at each place of an answer, >= 1.
        rows: remembered rows a step and draw; null is the training's batch.
    """

    family: ClassVar[Family] = "rehearsal"
    paper: ClassVar[str] = "https://huggingface.co/papers/2004.07211"
    rehearses: ClassVar[bool] = True
    neutral: ClassVar[dict[str, Any]] = {"alpha": 0.0, "beta": 0.0}

    def __init__(
        self, alpha: float = 1.0, beta: float = 0.5, top_k: int = 32, rows: int | None = None
    ):
        if min(alpha, beta) < 0 or top_k < 1 or (rows is not None and rows < 1):
            raise EngramError(
                "der: needs alpha and beta >= 0, top_k and rows >= 1, got "
                f"{alpha}, {beta}, {top_k} and {rows}"
            )
        self.alpha, self.beta, self.top_k, self.rows = alpha, beta, top_k, rows

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.load_state_dict(context.state)
        self.others = Memory(context.memory.tasks, derive(context.seed, "others"))
        return super().begin_task(model, context)

    def on_step_begin(self, args, state, control, **kwargs):
        self.step = state.global_step
        self.count = self.rows or rows_of_a_step(args)
        if not self.complete:  # the first step, of weights that the stage before left, or resumed
            encoder, labels = self.engine.kind == "encoder", self.labels
            known = None if labels is None else int(labels)
            top = sys.maxsize if encoder else self.top_k
            self.logits.complete(self.context.memory.tasks, self.engine, top, known)
            self.complete = True

    def edit_gradients(self, model: nn.Module) -> None:
        if not self.context.memory:
            return
        seed = derive(self.context.seed, "der", self.step)
        rows = self.context.memory.step(self.step, self.count)
        self._add(self.alpha, self.engine.side_gradient(rows, seed, self._distance(rows)))
        if self.beta:
            rows = self.others.step(self.step, self.count)
            self._add(self.beta, self.engine.side_gradient(rows, seed))

    def _distance(self, rows: list[dict[str, Any]]) -> Loss:
        """The mean of (z - z_then)^2, to be summed over the rows' micro-batches in their order."""
        values, choices = self.logits.of(rows)
        count, start = (choices >= 0).sum(), 0

        def loss(batch: dict[str, Tensor], outputs: Any) -> Tensor:
            nonlocal start
            z = learned_places(outputs.logits, batch["labels"], self.engine.kind)
            here = slice(start, start + len(z))
            start = here.stop
            return squares(z, values[here], choices[here]) / count.to(z.device)

        return loss

    @torch.no_grad()
    def _add(self, weight: float, gradient: list[Tensor]) -> None:
        for p, g in zip(self.engine.parameters, gradient, strict=True):
            if p.grad is not None:
                p.grad.add_(g, alpha=weight)

    def end_task(self, model: nn.Module) -> None:
        self.labels = known_labels(model).get("labels")

    def state_dict(self) -> dict[str, Tensor]:
        return self.logits.state | ({} if self.labels is None else {"labels": self.labels})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.logits, self.labels = Logits(state), state.get("labels")
        self.complete = False
