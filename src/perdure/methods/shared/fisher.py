"""How much a model's answers depend on each weight: the diagonal Fisher information and others.

None of these measures uses the labels of the rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perdure.data.task import limit_rows
from perdure.data.tokens import Features
from perdure.models.sharded import whole
from perdure.seeds import derive
from perdure.train.method import Engine
from perdure.train.parameters import Named, trained


Batch = dict[str, Tensor]


def fisher(engine: Engine, model: nn.Module, rows: Sequence[Features], seed: int) -> Named:
    """The diagonal of the Fisher information: E_x E_{y ~ p(y|x)} (d log p(y|x) / dw)^2.

    The labels y are drawn from the model, each token given the true text before it. With the
    training labels, the gradient vanishes where the model fits them, and so would the estimate.
    log p is summed over a row's tokens. Rows are processed one at a time, so the result does not
    depend on the batch size.
    """

    def likelihood(batch: Batch, outputs: Any, i: int) -> Tensor:
        logits = outputs.logits.float()
        labels = sampled(logits.detach(), derive(seed, "label", i))
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    return _mean(engine, model, rows, seed, loss=likelihood, function=torch.square)


def sensitivity(engine: Engine, model: nn.Module, rows: Sequence[Features], seed: int) -> Named:
    """E_x |d ||f(x)||^2 / dw|, with f the logits minus their mean, averaged over a row's positions.

    The mean is subtracted because the softmax does not depend on it.
    """

    def size(batch: Batch, outputs: Any, i: int) -> Tensor:
        logits = outputs.logits.float()
        return (logits - logits.mean(-1, keepdim=True)).square().sum(-1).mean()

    return _mean(engine, model, rows, seed, loss=size, function=torch.abs)


def relative(precision: Named) -> Named:
    """`precision` divided by its mean over all weights.

    The mean of a measured precision differs between bases, tasks and lengths of answers. After the
    division, a weight of average precision is pulled as by `l2` with the same strength, so one
    strength works for every base. A precision that is zero everywhere is returned unchanged.
    """
    count = sum(tensor.numel() for tensor in precision.values())
    sums = [whole(tensor.sum(dtype=torch.float64)) for tensor in precision.values()]
    mean = sum(map(float, sums)) / count
    return {name: tensor / (mean or 1.0) for name, tensor in precision.items()}


def sampled(logits: Tensor, seed: int) -> Tensor:
    """An index for each position, drawn from the softmax of its logits [positions, vocabulary]."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)
    return drawn.flatten().to(logits.device)


def drawn_rows(rows: Sequence[Features], count: int, seed: int) -> Sequence[Features]:
    """Draw `count` rows without replacement, or all rows if there are fewer."""
    return limit_rows(rows, count, derive(seed, "rows"))


def _mean(
    engine: Engine,
    model: nn.Module,
    rows: Sequence[Features],
    seed: int,
    loss: Callable[[Batch, Any, int], Tensor],
    function: Callable[[Tensor], Tensor],
) -> Named:
    """The mean over rows of a function of the gradient of each row's loss, such as its square.

    `loss` gets the row as a batch, the model's outputs on it, and the number of the row.
    """
    names = list(trained(model))
    total = [torch.zeros_like(p) for p in engine.parameters]
    for i, row in enumerate(rows):

        def loss_of_row(batch: Batch, outputs: Any, i: int = i) -> Tensor:
            return loss(batch, outputs, i)

        gradient = engine.side_gradient([row], derive(seed, "row", i), loss_of_row)
        for tensor, g in zip(total, gradient, strict=True):
            tensor += function(g) / len(rows)
    return dict(zip(names, total, strict=True))
