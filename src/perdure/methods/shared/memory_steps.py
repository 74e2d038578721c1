"""A few steps on remembered rows that train only the modules that the task changed most.

`fpf` takes them once, after a task; `k_fpf` takes them several times during it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, get_scheduler

from perdure.errors import PerdureError
from perdure.methods.shared.shares import floor_share
from perdure.seeds import derive
from perdure.train.method import Engine, TaskContext
from perdure.train.parameters import Named, trained
from perdure.train.step import rows_of_a_step


def modules(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the names of parameters by module; a LoRA pair belongs to the layer that it adapts."""
    names_of: dict[str, list[str]] = {}
    for name in names:
        module = name.partition(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]
        names_of.setdefault(module, []).append(name)
    return names_of


@torch.no_grad()
def changed_most(now: Named, start: Named, share: float) -> list[str]:
    """The parameters of the `share` of the modules, at least one, that changed most since `start`.

    The change of a module is ||w - start||_1 / |w| over all its tensors. Of modules that changed
    equally, the first ones are taken.
    """
    change = {}
    for module, names in modules(start).items():
        size = sum(start[name].numel() for name in names)
        moved = sum((now[name].float() - start[name].float()).abs().sum() for name in names)
        change[module] = float(moved) / size
    count = max(1, floor_share(share, len(change)))
    chosen = sorted(change, key=lambda module: -change[module])[:count]
    return [name for module in chosen for name in modules(start)[module]]


@dataclass
class MemorySteps:
    """A fixed number of steps on memory, which a method takes once or several times in a task.

    Args:
        method: the name of the method, for messages and seeds.
        share: the share of the modules to train, above 0 to 1, rounded down to at least one module.
        steps: how many steps are taken each time, >= 0.
        rows: the number of remembered rows in a step; None uses that of a full training step.
        rate: a constant learning rate, above 0; None uses the training's, with its schedule.

    Raises:
        PerdureError: a value is out of its range.
    """

    method: str
    share: float
    steps: int
    rows: int | None
    rate: float | None

    def __post_init__(self):
        rows, rate = self.rows, self.rate
        if not 0 < self.share <= 1 or self.steps < 0 or (rows is not None and rows < 1):
            raise PerdureError(
                f"{self.method}: needs 0 < share <= 1, steps >= 0 and rows >= 1, got {self.share}, "
                f"{self.steps} and {rows}"
            )
        if rate is not None and rate <= 0:
            raise PerdureError(
                f"{self.method}: learning_rate must be above 0, got {rate}; null uses the "
                "training's"
            )

    def run(
        self,
        engine: Engine,
        context: TaskContext,
        model: nn.Module,
        start: Named,
        number: int,
        rates: dict[int, float] | None = None,
    ) -> None:
        """Take the steps.

        The other modules get no gradient, so they do not count in clipping and do not change. Each
        call uses a new AdamW without weight decay; the Trainer's optimizer and its moments do not
        change.

        Args:
            engine: takes the steps.
            context: the task's context, with the memory and the seed.
            model: the model.
            start: the weights with which the task began.
            number: how many times the steps were taken before in this task.
            rates: the learning rate of each parameter, by its `id`, in the training step before
                these. None after training, when the schedule has ended: these steps then go through
                the same schedule once more.
        """
        args, parameters = engine.args, trained(model)
        start = {name: tensor for name, tensor in start.items() if name in parameters}
        names = changed_most(dict(parameters), start, self.share)  # pyright: ignore
        chosen = [parameters[name] for name in names]
        chosen_ids = {id(p) for p in chosen}

        def drop_other_gradients() -> None:
            for p in engine.parameters:
                if id(p) not in chosen_ids:
                    p.grad = None

        by_rate: dict[float, list[nn.Parameter]] = {}
        for p in chosen:
            scheduled = args.learning_rate if rates is None else rates[id(p)]
            by_rate.setdefault(scheduled if self.rate is None else self.rate, []).append(p)
        optimizer = torch.optim.AdamW(
            [{"params": group, "lr": rate} for rate, group in by_rate.items()],
            lr=args.learning_rate,  # to which schedules with a lowest rate relate it
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=0,
        )
        constant = rates is not None or self.rate is not None
        factor = _constant if constant else _schedule(args, optimizer, self.steps)  # on the rate
        row_count = self.rows or rows_of_a_step(args)
        for i in range(self.steps):
            for group, rate in zip(optimizer.param_groups, by_rate, strict=True):
                group["lr"] = rate * factor(i)
            step = number * self.steps + i
            rows = context.memory.step(step, row_count)
            seed = derive(context.seed, self.method, step)
            engine.fit_step(rows, optimizer, seed, drop_other_gradients)


def _constant(step: int) -> float:
    return 1.0


def _schedule(
    args: TrainingArguments, optimizer: torch.optim.Optimizer, steps: int
) -> Callable[[int], float]:
    """The training's schedule without warmup, as the factor on the rate in each step.

    It is 1 for a schedule that depends on a metric instead of the steps.
    """
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=0,
        num_training_steps=steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs or {},  # type: ignore[arg-type]
    )
    return schedule.lr_lambdas[0] if isinstance(schedule, LambdaLR) else _constant
