"""The trained parameters of a model by name, and copies of them."""

import torch
from torch import Tensor, nn

from perdure.models.classifier import Classifier


Named = dict[str, Tensor]
HEAD_NAMES = ("weight", "bias")  # the names of an encoder's head, which grows with new labels


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def snapshot(model: nn.Module) -> Named:
    """Copies of the trained weights."""
    return {name: p.detach().clone() for name, p in trained(model).items()}


def known_labels(model: nn.Module) -> Named:
    """`labels`: how many an encoder's head knows; nothing for other models."""
    return {"labels": torch.tensor(len(model.labels))} if isinstance(model, Classifier) else {}
