"""The learning rates with which the training's optimizer steps were taken.

In `on_step_end` the scheduler has advanced: `lr_scheduler.get_last_lr()` is the rate of the next
step, which is 0 at the end of a decay. In `on_optimizer_step` the optimizer still has the rate of
the step that it took, in Perdure's engine and in any other Trainer.
"""

from statistics import fmean
from typing import Any

import torch
from torch import Tensor


def rates_of(optimizer: Any) -> list[float]:
    """The learning rate of each parameter group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def initial_rates_of(optimizer: Any) -> list[float]:
    """The rate of each parameter group before the schedule's factor is applied."""
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


class Rates:
    """The rates of the steps since the last `clear`: a list for each step, by parameter group.

    A method calls `record` in its `on_optimizer_step`, and stores `state_dict` with its own state,
    so that a resumed run has the same mean as one that was never stopped.
    """

    def __init__(self):
        self.steps: list[list[float]] = []

    def record(self, optimizer: Any) -> None:
        """Add the rates of the step just taken; to be called in `on_optimizer_step`."""
        self.steps.append(rates_of(optimizer))

    def clear(self) -> None:
        self.steps = []

    def mean(self) -> list[float]:
        """The mean rate of each parameter group over the recorded steps (at least one)."""
        return [fmean(rates) for rates in zip(*self.steps, strict=True)]

    def last(self) -> list[float]:
        """The rate of each parameter group in the last recorded step."""
        return self.steps[-1]

    def state_dict(self) -> dict[str, Tensor]:
        """`rates` [steps, groups] in fp64; empty if no step is recorded."""
        return {"rates": torch.tensor(self.steps, dtype=torch.float64)} if self.steps else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.steps = state["rates"].tolist() if "rates" in state else []
