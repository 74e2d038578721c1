"""How much the model's answers depend on each weight, on given rows and without their labels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engram.data.task import limit_rows
from engram.data.tokens import IGNORED, Kind
from engram.seeds import derive
from engram.train.method import Engine
from engram.train.parameters import Named, trained


Row = dict[str, Any]
Batch = dict[str, Tensor]


def fisher(engine: Engine, model: nn.Module, rows: Sequence[Row], seed: int) -> Named:
    """The diagonal of the Fisher information: E_x E_{y ~ p(y|x)} (d log p(y|x) / dw)^2.

    The labels y are drawn from the model, each token given the true text before it: with the
    training's own labels the gradient vanishes where they are fitted, and so would the estimate.
    log p is summed over a row's tokens; rows are taken one by one, so the batch size plays no part.
    """

    def likelihood(batch: Batch, outputs: Any, i: int) -> Tensor:
        logits = learned_places(outputs.logits, batch["labels"], engine.kind)
        drawn = sampled(logits.detach(), derive(seed, "label", i))
        return nn.functional.cross_entropy(logits, drawn, reduction="sum")

    return _mean(engine, model, rows, seed, likelihood, torch.square)


def sensitivity(engine: Engine, model: nn.Module, rows: Sequence[Row], seed: int) -> Named:
    """E_x |d ||f(x)||^2 / dw|, with f the logits less their mean, averaged over a row's places.

    The softmax does not see a shift of all logits, so the shift is taken out.
    """

    def size(batch: Batch, outputs: Any, i: int) -> Tensor:
        logits = learned_places(outputs.logits, batch["labels"], engine.kind)
        return (logits - logits.mean(-1, keepdim=True)).square().sum(-1).mean()

    return _mean(engine, model, rows, seed, size, torch.abs)


def relative(precision: Named) -> Named:
    """`precision` over its mean over all weights: with it a strength is what it is without.

    The mean of F or omega is another one for each base, task and length of answers. Divided by it,
    a `strength` pulls a weight of average precision as `l2` of that strength does. A precision that
    is zero everywhere stays so.
    """
    count = sum(tensor.numel() for tensor in precision.values())
    mean = sum(float(tensor.sum(dtype=torch.float64)) for tensor in precision.values()) / count
    return {name: tensor / (mean or 1.0) for name, tensor in precision.items()}


def sampled(logits: Tensor, seed: int) -> Tensor:
    """A choice for each place, drawn from its softmax; logits [places, choices]."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)
    return drawn.flatten().to(logits.device)


def drawn_rows(rows: Sequence[Row], count: int, seed: int) -> Sequence[Row]:
    """`count` of the rows, all if there are no more."""
    return limit_rows(rows, count, derive(seed, "rows"))


def learned_places(logits: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """The logits [places, choices], in fp32, where there is a label to be learned."""
    if kind == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits[labels != IGNORED].float()


def _mean(
    engine: Engine,
    model: nn.Module,
    rows: Sequence[Row],
    seed: int,
    loss: Callable[[Batch, Any, int], Tensor],
    of: Callable[[Tensor], Tensor],
) -> Named:
    """The mean over rows of a function of the gradient of each row's loss."""
    names = list(trained(model))
    total = [torch.zeros_like(p) for p in engine.parameters]
    for i, row in enumerate(rows):

        def own(batch: Batch, outputs: Any, i: int = i) -> Tensor:
            return loss(batch, outputs, i)

        gradient = engine.side_gradient([row], derive(seed, "row", i), own)
        for sum_, g in zip(total, gradient, strict=True):
            sum_ += of(g) / len(rows)
    return dict(zip(names, total, strict=True))
