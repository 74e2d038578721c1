"""Orthogonal subspace fine-tuning."""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engram.errors import EngramError
from engram.methods.shared.subspace import without
from engram.models.classifier import Classifier
from engram.train.method import Family, Method, TaskContext


class OSF(Method):
    """Holds each matrix to what it does along its largest singular directions.

        W_0 = U S V^T, the first k: U_h [out, k], S_h, V_h [in, k];   U_h^T dW = 0,   dW V_h = 0
        g <- (I - U_h U_h^T) g (I - V_h V_h^T)                             before clipping
        W <- W_0 + (I - U_h U_h^T) (W - W_0) (I - V_h V_h^T)               after each step

    with W_0 the weights before the task, decomposed anew for each, so W V_h = U_h S_h and U_h^T W =
    S_h V_h^T at every step (Sculpting Subspaces, 2504.07097; PEFT's OSF). AdamW divides elementwise
    and decays, so projected gradients alone would leak. The paper trains the factors of the rest,
    W = U_h S_h V_h^T + A B of rank r = min(out, in) - k, U_h^T A = 0, B V_h = 0. Here W moves as a
    whole in the same set: A B - U_l S_l V_l^T is such a dW, and a W_0 + dW - U_h S_h V_h^T has its
    columns off U_h and its rows off V_h, so a rank of r at most: it is an A B. Adam's geometry is
    another. No layer is wrapped, merged or unloaded. Every `nn.Linear` and Conv1D is held but the
    output head and what is tied to an embedding; embeddings, norms, biases, an encoder's head and
    experts stored as one tensor are free. The paper's rank by a layer's importance is left out: its
    code has it commented out. Whatever else changes weights between steps is projected at the next
    one, and at the end of the task what stands before it in the list; a pull from behind it, l2's
    say, is clipped unprojected. Weights in bf16 hold to bf16's precision.

    State: none; W_0, U_h and V_h, 1 + k (out + in) / (out in) copies of the matrices, while a task
    is learned. Old rows: none. Cost: an SVD a matrix, and 8 k out in multiplications a step.

    Args:
        share: k / min(out, in), 0 to 1, rounded down. At 1 the matrices do not move.
        tasks: n of the paper's schedule in place of `share`: (t - 1) / n at task t, n's later on.
        first: whether to hold the first task too, at `share`, for what pre-training taught.
    """

    family: ClassVar[Family] = "gradient and weights"
    paper: ClassVar[str] = "https://huggingface.co/papers/2504.07097"
    needs: ClassVar[Any] = "whole"
    neutral: ClassVar[dict[str, Any]] = {"share": 0.0}

    def __init__(self, share: float = 0.5, tasks: int | None = None, first: bool = False):
        if not 0 <= share <= 1 or (tasks is not None and tasks < 1):
            raise EngramError(f"osf: needs 0 <= share <= 1 and tasks >= 1, got {share} and {tasks}")
        self.share, self.tasks, self.first = share, tasks, first

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        share = self.share if context.stage > 1 or self.first else 0.0
        if self.tasks and context.stage > 1:
            share = (min(context.stage, self.tasks) - 1) / self.tasks
        ranks = [(p, int(share * min(p.shape))) for p in matrices(model)]
        self.held = [(p, Held.of(p.detach(), k)) for p, k in ranks if k]
        return super().begin_task(model, context)

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module) -> None:
        for p, held in self.held:
            if p.grad is not None:
                p.grad.copy_(held.free(p.grad.float()))

    def on_optimizer_step(self, args, state, control, **kwargs):
        self._project()

    def end_task(self, model: nn.Module) -> None:
        self._project()
        self.held = []

    @torch.no_grad()
    def _project(self) -> None:
        for p, held in self.held:
            p.copy_(held.start.float() + held.free(p.float() - held.start.float()))


class Held(NamedTuple):
    """A matrix at the start of a task, and its largest singular directions."""

    start: Tensor  # [out, in]
    left: Tensor  # [out, k]
    right: Tensor  # [in, k]

    @classmethod
    def of(cls, matrix: Tensor, k: int) -> "Held":
        u, _, vt = torch.linalg.svd(matrix.float(), full_matrices=False)
        return cls(matrix.clone(), u[:, :k].clone(), vt[:k].mT.clone())

    def free(self, change: Tensor) -> Tensor:
        """The part of a change [out, in] that the held directions do not see, on either side."""
        return without(without(change, self.left).mT, self.right).mT


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained weights of the linear layers; Conv1D's lie transposed, which is all one here."""
    network: Any = model.backbone if isinstance(model, Classifier) else model
    embeddings = [m for m in network.modules() if isinstance(m, nn.Embedding)]
    free = {id(m.weight) for m in (*embeddings, network.get_output_embeddings()) if m is not None}
    linear = [m for m in network.modules() if isinstance(m, nn.Linear | Conv1D)]
    found = {id(m.weight): m.weight for m in linear if m.weight.requires_grad}
    return [p for key, p in found.items() if key not in free]  # type: ignore[misc]
