"""A burst: steps on remembered rows that train the modules which a task changed most, and no other.

What the bursts of `fpf`, after a task, and of `k_fpf`, inside one, have in common.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, get_scheduler

from engram.errors import EngramError
from engram.seeds import derive
from engram.train.method import Engine, TaskContext
from engram.train.parameters import Named, trained
from engram.train.step import rows_of_a_step


def modules(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of parameters by their module; a LoRA pair belongs to the layer it sits on."""
    found: dict[str, list[str]] = {}
    for name in names:
        module = name.partition(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]
        found.setdefault(module, []).append(name)
    return found


@torch.no_grad()
def changed_most(now: Named, start: Named, share: float) -> list[str]:
    """The names in the `share` of the modules, one at least, that changed most since `start`.

    A module's change is ||w - start||_1 / |w| over all its tensors; of equals the first ones.
    """
    change = {}
    for module, names in modules(start).items():
        size = sum(start[name].numel() for name in names)
        moved = sum((now[name].float() - start[name].float()).abs().sum() for name in names)
        change[module] = float(moved) / size
    count = max(1, int(share * len(change)))
    chosen = sorted(change, key=lambda module: -change[module])[:count]
    return [name for module in chosen for name in modules(start)[module]]


@dataclass
class Burst:
    """The settings of a method's bursts, and how one is run.

    Args:
        method: the name of the method, for messages and seeds.
        share: of the modules that are trained.
        steps: in a burst.
        rows: remembered rows a step; None is the training's batch.
        rate: learning rate, constant; None is the training's, by its schedule.
    """

    method: str
    share: float
    steps: int
    rows: int | None
    rate: float | None

    def __post_init__(self):
        rows, rate = self.rows, self.rate
        if not 0 < self.share <= 1 or self.steps < 0 or (rows is not None and rows < 1):
            raise EngramError(
                f"{self.method}: needs 0 < share <= 1, steps >= 0 and rows >= 1, got {self.share}, "
                f"{self.steps} and {rows}"
            )
        if rate is not None and rate <= 0:
            raise EngramError(
                f"{self.method}: learning_rate must be above 0, got {rate}; null is the training's"
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
        """Burst `number`, from 0, of a task that began with the weights `start`.

        `rates` are those of the training's step before the burst, by the id of a parameter, which
        it keeps. None is for a burst after the training, whose schedule is over: it goes through
        the same schedule again, over its own steps. The other modules get no gradient, so clipping
        does not count them and their bits stay. The AdamW is new for each burst and without weight
        decay: the Trainer's optimizer never hears of it.
        """
        args, moving = engine.args, trained(model)
        start = {name: tensor for name, tensor in start.items() if name in moving}
        chosen = [moving[name] for name in changed_most(dict(moving), start, self.share)]  # pyright: ignore
        kept = {id(p) for p in chosen}

        def only() -> None:
            for p in engine.parameters:
                if id(p) not in kept:
                    p.grad = None

        at: dict[float, list[nn.Parameter]] = {}
        for p in chosen:
            scheduled = args.learning_rate if rates is None else rates[id(p)]
            at.setdefault(scheduled if self.rate is None else self.rate, []).append(p)
        groups = [{"params": parameters, "lr": rate} for rate, parameters in at.items()]
        betas = (args.adam_beta1, args.adam_beta2)
        optimizer = torch.optim.AdamW(groups, betas=betas, eps=args.adam_epsilon, weight_decay=0)
        fixed = rates is not None or self.rate is not None
        factor = _constant if fixed else _schedule(args, optimizer, self.steps)
        count = self.rows or rows_of_a_step(args)
        for i in range(self.steps):
            for group, rate in zip(optimizer.param_groups, at, strict=True):
                group["lr"] = rate * factor(i)
            step = number * self.steps + i
            drawn = context.memory.step(step, count)
            engine.fit_step(drawn, optimizer, derive(context.seed, self.method, step), only)


def _constant(step: int) -> float:
    return 1.0


def _schedule(
    args: TrainingArguments, optimizer: torch.optim.Optimizer, steps: int
) -> Callable[[int], float]:
    """The factor on the rate in each step by the training's schedule, without its warmup.

    It is 1 for a schedule that follows a metric and not the steps.
    """
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=0,
        num_training_steps=steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs or {},  # type: ignore[arg-type]
    )
    return schedule.lr_lambdas[0] if isinstance(schedule, LambdaLR) else _constant
