"""Stops a training whose numbers are not finite, and warns of one that changes no weight."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback

from perdure.errors import NotFiniteError
from perdure.models.sharded import local, whole
from perdure.say import Say, silent


WATCHED = ("the loss", "the norm of the gradient", "the norm of the weights")
SAMPLED = 2**20  # weights that are compared with those at the start, over all tensors
# After so many steps, not counting warmup, some weight must have changed. In the first of them a
# LoRA changes only B, which is zero: A has no gradient before.
FEWEST_STEPS, STEPS = 3, 10
TINY = 1e-6  # of the largest weight


class FiniteCheck(TrainerCallback):
    """Stops a task at the step at which its loss, gradient or weights are not finite.

    The engine adds each loss and each norm of a gradient, also those of the steps that methods
    take. They stay on the device until a step has ended, and are then read at once, together with
    the norm of the weights. This is one synchronization in each step. The Trainer's own filter of
    losses would synchronize after each micro-batch, and is switched off in its place.

    A norm is the square root of a sum of squares, so a value above 1e19 counts as not finite.

    It also warns if none of the weights has changed after some steps, because the learning rate is
    too small for their data type.

    Args:
        task: the name of the task.
        trained: returns the trainable parameters.
        gather: gathers a tensor from all processes.
        say: called with the warning.
    """

    def __init__(
        self,
        task: str,
        trained: Callable[[], list[nn.Parameter]],
        gather: Callable[[Tensor], Tensor],
        say: Say = silent,
    ):
        self.task, self.trained, self.gather, self.say = task, trained, gather, say
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.learning_rate = 0.0
        self.start: list[Tensor] = []  # a sample of the weights, until it was compared
        self.compared_at = 0  # the step after which it is compared

    @property
    def pending(self) -> bool:
        """Whether losses or gradients were added since the last check."""
        return bool(self.losses or self.norms)

    def add_loss(self, loss: Tensor) -> None:
        self.losses.append(loss.detach())

    def add_norm(self, norm: Tensor | float) -> None:
        """Add the norm of a gradient."""
        self.norms.append(whole(torch.as_tensor(norm)))

    def add_gradient(self, gradients: Iterable[Tensor | None]) -> None:
        """Add the norm of a gradient that is not clipped."""
        self.norms.append(whole(get_total_norm([g for g in gradients if g is not None])))

    def check(self, when: str) -> None:
        """Check what was added since the last check, and the weights.

        Args:
            when: what the error line says of the time, such as "at step 3".

        Raises:
            NotFiniteError: a loss, gradient or weight is not finite in one of the processes. The
                line names the first of the three, which causes the others.
        """
        weights = [p.detach() for p in self.trained()]
        norm = whole(get_total_norm(weights))
        values = [total(self.losses, norm.device), total(self.norms, norm.device), norm.float()]
        self.losses, self.norms = [], []
        are_finite = self.gather(torch.stack(values).isfinite()[None]).all(0)
        for name, is_finite in zip(WATCHED, are_finite.tolist(), strict=True):
            if not is_finite:
                raise NotFiniteError(
                    f"task {self.task!r}: {name} is not finite {when}, so the task was stopped and "
                    "no stage was made of it; lower training.learning_rate, which is "
                    f"{self.learning_rate:g}, or look at the task's rows"
                )

    # --- the events of the Trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.learning_rate = args.learning_rate
        warmup = max(args.get_warmup_steps(state.max_steps), state.global_step)
        self.start = []
        if state.max_steps >= warmup + FEWEST_STEPS:
            self.compared_at = min(warmup + STEPS, state.max_steps)
            self.start = sample(self.trained())

    def on_step_end(self, args, state, control, **kwargs):
        self.check(f"at step {state.global_step}")
        if self.start and state.global_step >= self.compared_at:
            if is_unchanged(self.start, sample(self.trained())):
                self.say(
                    f"warning: {self.task}: no weight has changed in {state.global_step} steps, "
                    f"because training.learning_rate, which is {self.learning_rate:g}, is too "
                    "small for the precision of the weights; raise it"
                )
            self.start = []


def total(values: list[Tensor], device: torch.device) -> Tensor:
    """Return the sum of some scalars, which is not finite if one of them is not."""
    moved = [value.to(device, torch.float32) for value in values]
    return torch.stack(moved).sum() if moved else torch.zeros((), device=device)


def sample(parameters: list[nn.Parameter]) -> list[Tensor]:
    """Return copies of at most about `SAMPLED` weights, evenly spaced over each tensor.

    Of sharded weights they are of this process's part.
    """
    stride = 1 + sum(p.numel() for p in parameters) // SAMPLED
    return [local(p.detach()).flatten()[::stride].clone() for p in parameters]


def is_unchanged(start: list[Tensor], now: list[Tensor]) -> bool:
    """Return whether no weight has changed that was not tiny or zero at the start.

    A weight that is zero changes however small its update is, and says nothing of the others. If
    all are zero, they all count.
    """
    started = torch.cat([weights.flatten().float() for weights in start])
    changed = torch.cat([weights.flatten().float() for weights in now]) != started
    is_large = started.abs() >= TINY * started.abs().max()
    return not bool(changed[is_large].any())


def check_state(state: Mapping[str, Tensor]) -> None:
    """Check the tensors that methods keep for the next task, or in a checkpoint.

    Raises:
        NotFiniteError: one has a value that is not a number.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise NotFiniteError(
                f"method state {name!r}: has a value that is not a number, so no stage was made; "
                "lower training.learning_rate, or leave the method out"
            )
