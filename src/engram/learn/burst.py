"""A burst: steps on remembered rows that train the modules which a task changed most, and no other.

What the bursts of `fpf`, after a task, and of `k_fpf`, inside one, have in common.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from engram.errors import EngramError
from engram.learn.methods.base import Engine, TaskContext
from engram.learn.pull import Named, trained
from engram.seeds import derive


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
        rate: learning rate; None is the training's.
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
        self, engine: Engine, context: TaskContext, model: nn.Module, start: Named, number: int
    ) -> None:
        """Burst `number`, from 0, of a task that began with the weights `start`.

        The other modules get no gradient, so clipping does not count them and their bits stay. The
        AdamW is new for each burst, at a constant rate and without weight decay: the Trainer's
        optimizer never hears of it.
        """
        args, moving = engine.args, trained(model)
        start = {name: tensor for name, tensor in start.items() if name in moving}
        chosen = [moving[name] for name in changed_most(dict(moving), start, self.share)]  # pyright: ignore
        kept = {id(p) for p in chosen}

        def only() -> None:
            for p in engine.parameters:
                if id(p) not in kept:
                    p.grad = None

        rate = args.learning_rate if self.rate is None else self.rate
        betas = (args.adam_beta1, args.adam_beta2)
        optimizer = torch.optim.AdamW(chosen, rate, betas, args.adam_epsilon, weight_decay=0)
        accumulated = args.gradient_accumulation_steps * args.world_size
        count = self.rows or args.per_device_train_batch_size * accumulated
        for i in range(number * self.steps, (number + 1) * self.steps):
            drawn = context.memory.step(i, count)
            engine.fit_step(drawn, optimizer, derive(context.seed, self.method, i), only)
