"""How much the linear layers put out while they train, and which of their rows put out most."""

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engram.data.tokens import IGNORED
from engram.learn.lora import layers


# What a decoder's attention reads of the encoder: keys and values of as many tokens as that has.
READS_ENCODER = re.compile(r"(EncDecAttention|encoder_attn|cross_attn)\.(k|v)")


def linear(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """The trained matrices of linear layers: name, module whose output i row i makes, matrix.

    LoRA's A is a layer of its own; of B the module is the whole layer, W x + s B A x. The head over
    the vocabulary is left out, tied or not, and any LoRA on it.
    """
    carriers: dict[Any, Any] = {
        b: layer for _, layer in layers(model) for b in layer.lora_B.values()
    }
    head = getattr(model, "get_output_embeddings", lambda: None)()
    left_out = set() if head is None else set(head.parameters())
    for name, module in model.named_modules():
        weight: Any = module.weight if isinstance(module, nn.Linear) else None
        if weight is not None and weight.requires_grad and weight not in left_out:
            yield name, carriers.get(module, module), weight


class Magnitudes:
    """For every trained linear matrix the sums |y_i| of its outputs, one a row, over kept tokens.

    Taken by forward hooks in passes of training, between `open` and `close`, until `reset`.
    """

    def __init__(self, model: nn.Module):
        self.kept: list[Tensor] | None = None  # the masks [batch, length] of the batch
        self.sums: dict[nn.Parameter, Tensor] = {}
        self.handles = []
        for name, module, weight in linear(model):
            self.sums[weight] = torch.zeros(len(weight), device=weight.device)
            of_decoder = ".decoder." in f".{name}" and not READS_ENCODER.search(name)
            add = partial(self._add, weight, of_decoder)
            self.handles.append(module.register_forward_hook(add))

    def open(self, inputs: dict[str, Tensor]) -> None:
        """Of the next pass the tokens of this batch that are no padding count."""
        masks = (inputs["attention_mask"] != 0, inputs["labels"] != IGNORED)
        self.kept = [mask for mask in masks if mask.dim() == 2]

    def close(self) -> None:
        self.kept = None

    def reset(self) -> None:
        for total in self.sums.values():
            total.zero_()

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def totals(self, processes: int) -> dict[nn.Parameter, Tensor]:
        """The sums over all processes, which each see a part of the batch."""
        if processes > 1:
            flat = torch.cat(list(self.sums.values()))
            torch.distributed.all_reduce(flat)
            parts = flat.split([len(total) for total in self.sums.values()])
            return dict(zip(self.sums, parts, strict=True))
        return self.sums

    @torch.no_grad()
    def _add(
        self, weight: nn.Parameter, of_decoder: bool, module: nn.Module, args: Any, output: Tensor
    ) -> None:
        if self.kept is None or not module.training:
            return
        size = output.float().abs()
        for mask in reversed(self.kept) if of_decoder else self.kept:
            if mask.shape == size.shape[:-1]:
                size = size * mask.to(size.device).unsqueeze(-1)
                break
        self.sums[weight] += size.flatten(0, -2).sum(0)


def largest(sums: Tensor, threshold: float) -> Tensor:
    """The mask of the ceil((1 - threshold) n) largest of n sums, and of those equal to the least.

    The count is exact: the threshold is read as the decimal it prints as.
    """
    count = math.ceil((1 - Fraction(str(threshold))) * len(sums))
    return sums >= sums.topk(count).values[-1]
