"""Orthogonal subspace fine-tuning."""

from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from perdure.errors import PerdureError
from perdure.methods.shared.shares import floor_share
from perdure.methods.shared.subspace import without
from perdure.models.classifier import without_head
from perdure.train.method import Family, Keeps, Method, TaskContext


class OSF(Method):
    """Keeps the action of each matrix along its largest singular directions.

        W_0 = U S V^T, the first k: U_h [out, k], S_h, V_h [in, k];   U_h^T dW = 0,   dW V_h = 0
        g <- (I - U_h U_h^T) g (I - V_h V_h^T)                             before clipping
        W <- W_0 + (I - U_h U_h^T) (W - W_0) (I - V_h V_h^T)               after each step

    with W_0 the weights before the task, decomposed again for each task, so W V_h = U_h S_h and
    U_h^T W = S_h V_h^T at every step (Sculpting Subspaces, 2504.07097; PEFT's OSF). AdamW divides
    elementwise and decays the weights, so projected gradients alone would not ensure this.

    The paper trains the factors of the rest, W = U_h S_h V_h^T + A B of rank r = min(out, in) - k,
    with U_h^T A = 0 and B V_h = 0. Here W itself is trained within the same set: such a dW is
    A B - U_l S_l V_l^T, and W_0 + dW - U_h S_h V_h^T has its columns orthogonal to U_h and its rows
    to V_h, so it has rank r at most and is such an A B. Only the parametrization that Adam works on
    is different. No layer is wrapped, merged or unloaded.

    The method constrains every `nn.Linear` and Conv1D except the output head and weights that are
    tied to an embedding. Embeddings, norms, biases, an encoder's head and experts stored as one
    tensor are not constrained. The paper chooses the rank by a layer's importance; this is left
    out, as it is commented out in the authors' code. Changes that other methods make to the weights
    between steps are projected at the next step; at the end of a task, those of methods earlier in
    the list are projected. A pull, such as that of `l2`, is added before, wherever it is in the
    list, and projected with the rest of the gradient before clipping. With weights in bf16, the
    equations hold to the precision of bf16.

    State: none; while a task is learned W_0, U_h and V_h, 1 + k (out + in) / (out in) copies of the
    matrices. Old rows: none. Cost: an SVD of each matrix, and 8 k out in multiplications in each
    step.

    Args:
        share: k / min(out, in), 0 to 1, rounded down. With 1 the matrices do not change.
        tasks: n of the paper's schedule, which replaces `share`: the share is (t - 1) / n at task
            t, and that of task n for later tasks.
        first: whether to constrain the first task too, with `share`, to protect what was learned in
            pre-training.
    """

    family: ClassVar[Family] = "gradient and weights"
    paper: ClassVar[str] = "https://huggingface.co/papers/2504.07097"
    needs: ClassVar[Any] = "whole"
    neutral: ClassVar[dict[str, Any]] = {"share": 0.0}
    keeps: ClassVar[Keeps] = Keeps(share=0.35, second_loss=0.4, keywords={"share": 0.9})

    def __init__(self, share: float = 0.5, tasks: int | None = None, first: bool = False):
        if not 0 <= share <= 1 or (tasks is not None and tasks < 1):
            raise PerdureError(
                f"osf: needs 0 <= share <= 1 and tasks >= 1, got {share} and {tasks}"
            )
        self.share, self.tasks, self.first = share, tasks, first

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        share = self.share if context.stage > 1 or self.first else 0.0
        if self.tasks and context.stage > 1:
            share = Fraction(min(context.stage, self.tasks) - 1, self.tasks)
        ranks = [(p, floor_share(share, min(p.shape))) for p in matrices(model)]
        self.constrained = [(p, Directions.of(p.detach(), k)) for p, k in ranks if k]
        return super().begin_task(model, context)

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module) -> None:
        for p, directions in self.constrained:
            if p.grad is not None:
                p.grad.copy_(directions.project(p.grad.float()))

    def on_optimizer_step(self, args, state, control, **kwargs):
        self._project()

    def end_task(self, model: nn.Module) -> None:
        self._project()
        self.constrained = []

    @torch.no_grad()
    def _project(self) -> None:
        for p, directions in self.constrained:
            start = directions.start.float()
            p.copy_(start + directions.project(p.float() - start))


class Directions(NamedTuple):
    """A matrix at the start of a task, and its largest singular directions."""

    start: Tensor  # [out, in]
    left: Tensor  # [out, k]
    right: Tensor  # [in, k]

    @classmethod
    def of(cls, matrix: Tensor, k: int) -> "Directions":
        u, _, vt = torch.linalg.svd(matrix.float(), full_matrices=False)
        return cls(matrix.clone(), u[:, :k].clone(), vt[:k].mT.clone())

    def project(self, change: Tensor) -> Tensor:
        """The part of a change [out, in] that is orthogonal to the directions on both sides."""
        return without(without(change, self.left).mT, self.right).mT


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights to constrain; those of Conv1D are transposed, which makes no difference here."""
    network = without_head(model)
    embeddings = [m for m in network.modules() if isinstance(m, nn.Embedding)]
    excluded_modules = [*embeddings, network.get_output_embeddings()]
    excluded = {id(m.weight) for m in excluded_modules if m is not None}
    linear = [m for m in network.modules() if isinstance(m, nn.Linear | Conv1D)]
    weights = {id(m.weight): m.weight for m in linear if m.weight.requires_grad}
    return [p for key, p in weights.items() if key not in excluded]  # type: ignore[misc]
