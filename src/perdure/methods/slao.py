"""SLAO: one adapter, which is merged after each task."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from perdure.errors import PerdureError
from perdure.methods.shared.lora import factors
from perdure.train.method import Family, Keeps, Method, TaskContext
from perdure.train.parameters import Named


class SLAO(Method):
    """Learns each task from an orthonormal A, then merges its B into one running adapter.

        start   A <- Q^T of A_prev^T = Q R,   B <- B_prev as trained, before merging
        end     A stays as trained,   B <- B_merged + rate (B - B_merged),   rate = 1 / sqrt(i)

    for the i-th task, in each LoRA layer ("Merge before Forget", Qiao & Mahdavi 2025, 2512.23017).
    The signs of Q are chosen so that the diagonal of R is not negative (0 counts as positive),
    which makes the result independent of the linear algebra library. The rows of A become
    orthonormal and keep their span; but B Q^T is not B A, so the model's outputs jump when a task
    starts. We found no code by the authors; the equations are taken from accounts of the paper.
    Other trained weights, such as an encoder's head, stay as trained. The first task is plain
    fine-tuning. Because every A is rotated before a task, it cannot be combined with `fpf` and
    `k_fpf`, which look for the largest changes, and with `hft`, which freezes some pairs.

    State: the last task's B before merging, if merging changed it, and i: O(1) in tasks. Old rows:
    none. Cost: a QR decomposition of each A in each task.

    Args:
        merging: the rate from the second task on, 0 to 1; null uses 1 / sqrt(i), 1 merges nothing.
        orthogonal: whether a task starts from Q^T; otherwise it starts from the previous A.
    """

    family: ClassVar[Family] = "adapters"
    paper: ClassVar[str] = "https://huggingface.co/papers/2512.23017"
    needs: ClassVar = "lora"
    follows: ClassVar[bool] = True
    begin_phase: ClassVar[Literal[1]] = 1
    neutral: ClassVar[dict[str, Any]] = {"merging": 1.0, "orthogonal": False}
    keeps: ClassVar[Keeps] = Keeps(share=0.2, second_loss=1.0, keywords={"merging": 0.3})

    def __init__(self, merging: float | None = None, orthogonal: bool = True):
        if merging is not None and not 0 <= merging <= 1:
            raise PerdureError(
                f"slao: merging must be from 0 to 1, got {merging}; 1 merges nothing"
            )
        self.merging, self.orthogonal = merging, orthogonal

    @torch.no_grad()
    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self._load_last(context)
        self.merged: Named = {}
        for name, (a, b, _) in factors(model).items():
            if len(a) > a.shape[1]:
                raise PerdureError(
                    f"slao: {name} has {a.shape[1]} inputs, too few for {len(a)} orthogonal rows; "
                    "lower adapter.r"
                )
            if self.tasks > 0:
                self.merged[name] = b.detach().clone()
        self._start(model)
        return super().begin_task(model, context)

    def _start(self, model: nn.Module) -> None:
        """Change the weights with which the last task ended to those with which this one starts."""
        for name, (a, b, _) in factors(model).items() if self.tasks > 0 else ():
            b.copy_(self.tuned.get(name, b))
            if self.orthogonal:
                a.copy_(orthonormal_rows(a))

    @contextmanager
    def next_start(self, model: nn.Module) -> Iterator[None]:
        end_weights = {p: p.detach().clone() for a, b, _ in factors(model).values() for p in (a, b)}
        with torch.no_grad():
            self._start(model)
        yield
        with torch.no_grad():
            for parameter, weights in end_weights.items():
                parameter.copy_(weights)

    @torch.no_grad()
    def end_task(self, model: nn.Module) -> None:
        self.tasks, self.tuned = self.tasks + 1, {}
        rate = float(self.tasks) ** -0.5 if self.merging is None else self.merging
        for name, (_, b, _) in factors(model).items():
            if name in self.merged and rate < 1:
                self.tuned[name] = b.detach().clone()
                b.copy_(torch.lerp(self.merged[name].float(), b.float(), rate))
        self.merged = {}

    def state_dict(self) -> dict[str, Tensor]:
        return {"tasks": self.tasks} | {f"b.{name}": b for name, b in self.tuned.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.tasks = state.get("tasks", torch.tensor(0))
        self.tuned = {name[2:]: b for name, b in state.items() if name.startswith("b.")}

    def _load_last(self, context: TaskContext) -> None:
        """Load the state; after stages without this method, B is what these have made of it."""
        self.load_state_dict(context.state)
        if not context.is_newest:
            self.tasks, self.tuned = torch.tensor(context.stage - 1), {}


def orthonormal_rows(a: Tensor) -> Tensor:
    """Rows with the span of `a` [r, in], r <= in: Q^T of a^T = Q R, where R has a diagonal >= 0."""
    q, r = torch.linalg.qr(a.float().mT)
    return (q * torch.where(r.diagonal() < 0, -1.0, 1.0)).mT
