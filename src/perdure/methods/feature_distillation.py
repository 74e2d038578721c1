"""Distillation of the hidden states."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from perdure.config import Config
from perdure.errors import PerdureError
from perdure.methods.shared.teacher import HeadInputs, Source, Teacher, check_base
from perdure.models.head import predicting
from perdure.models.kinds import Kind
from perdure.train.method import Family, Keeps, Method, TaskContext


class FeatureDistillation(Method):
    """Keeps the last hidden states on new rows near those of the old model.

        loss = task + strength mean (||h - h_old||^2 / ||h_old||^2)

    over the positions that predict the answer, where h is the input of the output head (for an
    encoder, the pooled mean). The weights of the head get no gradient from this term. It is FeatKD
    in Smith et al. 2023 (2203.17269), where it never helped, so it serves as a baseline. We do not
    know which layer and weight the paper used: the last layer, the division and the default are
    ours. The division by the squared old features at each position makes the term the same size for
    a base with large features as for one with small ones.

    The teacher is that of `lwf`, in evaluation mode: the model with the weights of the previous
    stage, or (`base`) the base with its adapter disabled, from the first task on. With `previous`,
    the term and its gradient are zero at the start of a task.

    State: a copy of the trained weights while a task is learned, none after it. Old rows: none.
    Cost: one more forward pass on every batch.

    Args:
        strength: the factor of the term, >= 0.
        teacher: `previous` or `base`.
    """

    family: ClassVar[Family] = "distillation"
    paper: ClassVar[str] = "https://huggingface.co/papers/2203.17269"
    end_phase: ClassVar[Literal[2]] = 2  # other methods may still take steps at a task's end
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}
    keeps: ClassVar[Keeps] = Keeps(second_loss=0.5)

    def __init__(self, strength: float = 10.0, teacher: Source = "previous"):
        if strength < 0:
            raise PerdureError(f"feature_distillation: strength must be >= 0, got {strength}")
        self.strength = strength
        self.source: Source = teacher

    def check(self, config: Config, kind: Kind) -> None:
        super().check(config, kind)
        if self.source == "base":
            check_base(self.name, config, kind)

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        has_teacher = context.stage > 1 or self.source == "base"
        self.teacher = Teacher(model, self.source) if has_teacher else None
        return super().begin_task(model, context)

    def on_train_begin(self, args, state, control, model: Any = None, **kwargs):
        self.model = model
        self.head_inputs = HeadInputs(model) if self.teacher else None

    def extra_loss(self, model: nn.Module, inputs: dict[str, Tensor], outputs: Any) -> Any:
        if self.teacher is None or self.head_inputs is None:
            return None
        kind = self.engine.kind
        self.teacher(self.model, inputs, kind)
        where = predicting(inputs["labels"], kind)
        new, old = self.head_inputs.student[where].float(), self.head_inputs.teacher[where].float()
        return self.strength * relative_distance(new, old)

    def end_task(self, model: nn.Module) -> None:
        if self.head_inputs is not None:
            self.head_inputs.close()
        self.teacher = self.head_inputs = None


def relative_distance(new: Tensor, old: Tensor) -> Tensor:
    """The mean over positions of ||new - old||^2 / ||old||^2, for features [positions, width].

    It is a mean of quotients, which does not depend on how a batch is split into micro-batches.
    """
    squared_norms = old.square().sum(-1).clamp_min(torch.finfo(old.dtype).tiny)
    return ((new - old).square().sum(-1) / squared_norms).mean()
