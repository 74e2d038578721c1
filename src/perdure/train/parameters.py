"""The trained parameters of a model by name, and copies of them."""

import torch
from torch import Tensor, nn

from perdure.models.classifier import Classifier
from perdure.train.method import TaskContext


Named = dict[str, Tensor]
HEAD_NAMES = ("weight", "bias")  # the parameters of an encoder's head, which grows with new labels


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters of a model, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def snapshot(model: nn.Module) -> Named:
    """Copies of the trained weights, by name."""
    return {name: p.detach().clone() for name, p in trained(model).items()}


def old_labels(context: TaskContext) -> Tensor | None:
    """The number of labels of an encoder's head before the task (`TaskContext`), else None."""
    if context.labels is None:
        return context.state.get("labels")
    return torch.tensor(context.labels)


def known_labels(model: nn.Module) -> Named:
    """The number of labels that an encoder's head has, as `labels`; empty for other models."""
    return {"labels": torch.tensor(len(model.labels))} if isinstance(model, Classifier) else {}
