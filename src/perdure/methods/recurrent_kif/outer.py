"""The outer steps: steps on memory between the Trainer's steps, with a separate optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from perdure.methods.recurrent_kif.adamw import PiecewiseAdamW
from perdure.methods.recurrent_kif.rates import initial_rates_of
from perdure.seeds import derive
from perdure.train.method import Steps, TaskContext


ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


class OuterLearner:
    """Takes steps on memory without changing the moments of the training's optimizer.

    Its AdamW has the betas of the training and no weight decay. If the training's parameter groups
    have different initial rates, it has one group for each of these rates.

    Args:
        engine: takes the steps.
        context: the task's context, with the memory and the seed of the steps.
        args: the training's arguments.
        training: the training's optimizer.
        steps: the number of steps in a round.
        rate: the learning rate; None uses that of each of the training's groups.
        constant: whether the rate is constant or follows the training's schedule.
        rows: the number of remembered rows in a step, or all if the memory has fewer.
        shared: whether the training's optimizer takes these steps too, at its own rates.
        offload: whether the moments are in host memory.
        states: the data type of the first moment; None is that of the weights.
    """

    def __init__(
        self,
        engine: Steps,
        context: TaskContext,
        args: TrainingArguments,
        training: Any,
        *,
        steps: int,
        rate: float | None,
        constant: bool,
        rows: int,
        shared: bool,
        offload: bool = False,
        states: torch.dtype | None = None,
    ):
        self.engine, self.context, self.steps, self.shared = engine, context, steps, shared
        self.memory = context.memory
        self.rate, self.constant, self.offload = rate, constant, offload
        self.rows = rows
        self.initial = initial_rates_of(training)  # by group of the training's optimizer
        self.groups = _groups(engine.parameters, training, self.initial)
        self.optimizer: Optimizer = training
        if not shared:
            self.optimizer = PiecewiseAdamW(
                [{"params": parameters} for parameters in self.groups.values()],
                offload=offload,
                first_moment=states,
                lr=args.learning_rate,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
                weight_decay=0,
            )

    def learn(
        self, number: int, inner: Sequence[float], inspect: Callable[[], Tensor | None]
    ) -> None:
        """Take the steps of round `number`, counted from 0.

        `inner` are the mean rates of the round's steps on the new task, one for each parameter
        group of the training's optimizer. `inspect` is called in each step when the gradients are
        complete but not clipped yet.
        """
        previous_rates = [group["lr"] for group in self.optimizer.param_groups]
        _set_rates(self.optimizer, inner if self.shared else self._rates(inner))
        for i in range(number * self.steps, (number + 1) * self.steps):
            rows = self.memory.step(i, self.rows)
            seed = derive(self.context.seed, "recurrent_kif", i)
            self.engine.fit_step(rows, self.optimizer, seed, inspect)
        if self.shared:  # restore the rates that the training's schedule has set
            _set_rates(self.optimizer, previous_rates)

    def _rates(self, inner: Sequence[float]) -> list[float]:
        """The rates of this optimizer's groups, given the mean rates of the training's groups."""
        rates = []
        for group in self.groups:
            base = self.initial[group] if self.rate is None else self.rate
            if self.constant:
                rates.append(base)
            elif self.rate is None:
                rates.append(inner[group])
            else:
                initial = self.initial[group]
                rates.append(base * inner[group] / initial if initial else 0.0)
        return rates

    def tensors(self) -> dict[str, Tensor]:
        if self.shared:
            return {}
        initial = torch.tensor(self.initial, dtype=torch.float64)
        return {"initial_rates": initial, **adam_tensors(self.optimizer, self.engine.parameters)}

    def load(self, state: dict[str, Tensor]) -> None:
        if "initial_rates" in state:  # not every scheduler stores them in the optimizer
            self.initial = state["initial_rates"].tolist()
        load_adam_tensors(self.optimizer, self.engine.parameters, state, self.offload)


def _set_rates(optimizer: Any, rates: Sequence[Any]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _groups(
    parameters: Sequence[nn.Parameter], training: Any, initial: Sequence[float]
) -> dict[int, list[nn.Parameter]]:
    """The parameters by initial rate; the key is the first training group that has this rate."""
    number = {id(p): i for i, group in enumerate(training.param_groups) for p in group["params"]}
    groups: dict[int, list[nn.Parameter]] = {}
    for parameter in parameters:
        rate = initial[number.get(id(parameter), 0)]
        groups.setdefault(initial.index(rate), []).append(parameter)
    return groups


def adam_tensors(optimizer: Optimizer, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """The optimizer's state as named tensors; empty before its first step."""
    return {
        f"adam.{key}.{i}": optimizer.state[p][key]
        for i, p in enumerate(parameters)
        for key in ADAM_STATE
        if key in optimizer.state[p]
    }


def load_adam_tensors(
    optimizer: Optimizer,
    parameters: Sequence[Tensor],
    tensors: dict[str, Tensor],
    offload: bool = False,
) -> None:
    """The inverse of `adam_tensors`; tensors with other names are ignored.

    The moments are moved to the devices of their parameters, unless they are offloaded; the step
    stays on the CPU, as in torch.
    """
    for i, p in enumerate(parameters):
        for key in ADAM_STATE:
            if f"adam.{key}.{i}" in tensors:
                device = "cpu" if key == "step" or offload else p.device
                optimizer.state[p][key] = tensors[f"adam.{key}.{i}"].to(device, copy=True)
