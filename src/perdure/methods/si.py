"""Synaptic intelligence."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perdure.errors import PerdureError
from perdure.methods.shared.fisher import relative
from perdure.methods.shared.quadratic_pull import QuadraticPull, starting_with
from perdure.train.method import Keeps
from perdure.train.parameters import Named, snapshot, trained


class SI(QuadraticPull):
    """Pulls each weight towards its last value, more strongly if its path lowered the old losses.

        omega <- omega - g dw   in every optimizer step of a task, from 0
        Omega_t = max(0, omega / (d^2 + xi)),   d = w_end - w_start,   xi = damping (mean of d^2)
        Omega <- Omega + Omega_t / (mean of Omega_t)
        loss = task + strength sum_j Omega_j (w_j - w*_j)^2,   g += 2 strength Omega (w - w*)

    with w* the weights at the start of the task (Zenke, Poole & Ganguli 2017, 1703.04200). g is the
    gradient of the whole accumulated batch at the weights before the step, before clipping. It
    includes the pulls of `l2`, `ewc` and `mas` if they are earlier in the list, but not the pull of
    this method, nor what `agem`, `der`, `migu` and `osf` make of the gradient, which comes after
    all pulls. dw is the full change by the optimizer's step, with momentum and weight decay,
    because the paper integrates along the path that the weights really took. To first order, omega
    adds up to the decrease of the loss during the task. It needs no further pass over the data and
    no labels.

    Both means are over all trained weights, and both are ours. The paper's xi is a constant (0.1 or
    0.001 in the authors' code), which is larger than most d^2 in fine-tuning. With xi and Omega
    relative to their means, the scale of the loss and the scale of d cancel out, and one default
    works for every base. The authors set negative values of the summed Omega to 0; here those of
    each task are set to 0. The defaults forgot least on the small two-task stream of
    tests/methods/test_toy_stream.py, with and without LoRA, while the second task was still
    learned; they have not been tried on a benchmark.

    State: Omega and Omega w*, of the trainable weights' size, O(1) in tasks; while a task is
    learned, also omega and w_start, and between a gradient and its step a copy of the gradient and
    of the weights. Old rows: none. Cost: a few elementwise operations in each step.

    Args:
        strength: the paper's c times the mean of Omega, >= 0.
        damping: xi divided by the mean of d^2, above 0. The smaller it is, the larger is Omega for
            a weight that returned to its starting value.
    """

    paper: ClassVar[str] = "https://huggingface.co/papers/1703.04200"
    factor: ClassVar[float] = 2.0
    keeps: ClassVar[Keeps] = Keeps(share=0.7, second_loss=0.4)

    def __init__(self, strength: float = 0.1, damping: float = 1.0):
        super().__init__(strength)
        if damping <= 0:
            raise PerdureError(f"si: damping must be above 0, got {damping}; 1 is the default")
        self.damping = damping
        self.path: Named = {}  # omega, the path integral of the current task
        self.start: Named = {}  # the weights with which training on the task started

    def on_train_begin(self, args, state, control, model: Any = None, **kwargs):
        super().on_train_begin(args, state, control, model=model, **kwargs)
        # If a run is resumed, `load_state_dict` is called after this and replaces both.
        self.start = snapshot(model)
        self.path = {
            name: torch.zeros_like(w, dtype=torch.float32) for name, w in self.start.items()
        }

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module) -> None:
        self.before: dict[str, tuple[Tensor, Tensor]] = {  # (weights, gradient) of this step
            name: (p.detach().clone(), p.grad.clone())
            for name, p in trained(model).items()
            if p.grad is not None
        }
        super().edit_gradients(model)

    @torch.no_grad()
    def on_optimizer_step(self, args, state, control, model: Any = None, **kwargs):
        parameters = trained(model)
        for name, (weights, gradient) in self.before.items():
            self.path[name] -= gradient.float() * (parameters[name] - weights)
        self.before = {}

    @torch.no_grad()
    def on_train_end(self, args, state, control, model: Any = None, **kwargs):
        # This comes before any method's `end_task`, which may change the weights further.
        parameters = trained(model)
        moved = {name: parameters[name] - start for name, start in self.start.items()}
        self.precision = relative(path_precision(self.path, moved, self.damping))
        self.path, self.start = {}, {}

    def measure_precision(self, model: nn.Module) -> Named:
        # Zero for a weight that was frozen while the task was learned, for example by `hft`.
        return {
            name: self.precision.get(name, torch.zeros_like(p, dtype=torch.float32))
            for name, p in trained(model).items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        path = {f"path.{name}": tensor for name, tensor in self.path.items()}
        start = {f"start.{name}": tensor for name, tensor in self.start.items()}
        return super().state_dict() | path | start

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        for name, tensor in starting_with("path.", state).items():
            self.path[name] = tensor.to(self.path[name].device)
        for name, tensor in starting_with("start.", state).items():
            self.start[name] = tensor.to(self.start[name].device)


def path_precision(path: Named, moved: Named, damping: float) -> Named:
    """max(0, path / (moved^2 + xi)), with xi `damping` times the mean of moved^2 over all weights.

    A weight that did not move has the path integral 0, and so the precision 0.
    """
    count = sum(tensor.numel() for tensor in moved.values())
    total = sum(float(tensor.square().sum(dtype=torch.float64)) for tensor in moved.values())
    xi = damping * total / count or 1.0  # 1 where no weight moved
    return {
        name: (path[name] / (tensor.square() + xi)).clamp_(min=0) for name, tensor in moved.items()
    }
