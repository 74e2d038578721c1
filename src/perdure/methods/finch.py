"""A learning rate that falls as the loss rises."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perdure.errors import PerdureError
from perdure.train.losses import count_items, token_loss
from perdure.train.method import Family, Keeps, Method


EPSILON = 1e-8  # added to the mean loss, in nats


class FINCH(Method):
    """Takes smaller steps while the loss is high, as these change most of what the model knew.

        m_i = beta m_(i-1) + (1 - beta) L_i,   m_1 = L_1
        rate_i = schedule_i min(most, sqrt(loss / (m_i + 1e-8)))

    with L_i the task loss of step i in nats, over all its micro-batches, processes and rehearsed
    rows, and schedule_i the learning rate of the training's schedule (Prashant et al. 2026,
    2605.20005). The authors bound what a step forgets by the rate times the square root of the
    loss. Their rate is kappa / sqrt(m_i + eps), and at most 5e-5 if all weights are trained. Here
    kappa is the schedule's rate times sqrt(loss), so that the same keywords suit an adapter and all
    weights. How they choose kappa, eps and the cap of an adapter we have not seen. AdamW's weight
    decay goes with the rate, as in every schedule.

    It is meant for what the model knew before the first task, and so acts in that one, too. It
    reads no old row and does not know what an old task needs.

    State: m, a number. Old rows: none. Cost: none.

    Args:
        loss: the loss in nats at which the rate is that of the schedule, above 0.
        most: the largest factor of the schedule's rate, above 0.
        beta: the smoothing of the loss, from 0 to less than 1.
    """

    family: ClassVar[Family] = "data and schedule"
    paper: ClassVar[str] = "https://huggingface.co/papers/2605.20005"
    neutral: ClassVar[dict[str, Any]] = {"loss": 1e9, "most": 1.0}
    keeps: ClassVar[Keeps] = Keeps(share=0.2, second_loss=0.6, keywords={"loss": 0.3, "most": 1.0})

    def __init__(self, loss: float = 1.0, most: float = 2.0, beta: float = 0.9):
        if not (loss > 0 and most > 0 and 0 <= beta < 1):
            raise PerdureError(
                f"finch: needs loss > 0, most > 0 and 0 <= beta < 1, got {loss}, {most} and {beta}"
            )
        self.loss, self.most, self.beta = loss, most, beta
        self.mean: float | None = None

    def why_not_sharded(self) -> str | None:
        return None  # it reads no weights

    def on_train_begin(self, args, state, control, **kwargs):
        self.mean, self.rates = None, []
        self.opened, self.sums = False, torch.zeros(2, device=args.device)  # loss, items

    def before_step(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        self.opened = True
        return inputs

    def extra_loss(self, model: nn.Module, inputs: dict[str, Tensor], outputs: Any) -> None:
        if self.opened:  # not in a step on memory that another method takes
            kind = self.engine.kind
            loss = token_loss(outputs.logits.detach(), inputs["labels"], 1, kind)
            self.sums += torch.stack([loss, count_items(inputs, kind).to(loss)])
            self.opened = False

    def on_pre_optimizer_step(self, args, state, control, optimizer: Any = None, **kwargs):
        total, items = self.engine.of_all_processes(self.sums[None]).sum(0).tolist()
        self.sums.zero_()
        mean = loss = total / items
        if self.mean is not None:
            mean = self.beta * self.mean + (1 - self.beta) * loss
        factor = min(self.most, math.sqrt(self.loss / (mean + EPSILON)))
        self.mean = mean
        self.rates = [(group["lr"], factor * group["lr"]) for group in optimizer.param_groups]
        for group, (_, rate) in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate

    def on_step_end(self, args, state, control, optimizer: Any = None, **kwargs):
        # Some schedules change the rate that they find, so they must find their own.
        for group, (scheduled, rate) in zip(optimizer.param_groups, self.rates, strict=True):
            if group["lr"] == rate:
                group["lr"] = scheduled

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.mean is None else {"mean": torch.tensor(self.mean, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mean = float(state["mean"]) if "mean" in state else None
