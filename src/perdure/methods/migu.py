"""Updates only the matrix rows with large outputs."""

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perdure.config import Config
from perdure.data.tokens import IGNORED
from perdure.errors import PerdureError
from perdure.methods.shared.lora import layers
from perdure.models.kinds import Kind
from perdure.train.method import Family, Keeps, Method


# The keys and values of a decoder's cross-attention, whose inputs are the encoder's tokens.
READS_ENCODER = re.compile(r"(EncDecAttention|encoder_attn|cross_attn)\.(k|v)")


def linear(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """The trained matrices of linear layers, as (name, module, matrix).

    Row i of the matrix computes output i of the module. For LoRA's A, the module is A itself; for
    B, it is the whole layer, W x + s B A x. The head over the vocabulary is left out, whether tied
    or not, and so is any LoRA on it.
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
    """Sums |y_i| over tokens, for each row i of every trained linear matrix.

    Forward hooks add to the sums in training passes between `open` and `close`. `reset` sets the
    sums to zero.
    """

    def __init__(self, model: nn.Module):
        self.masks: list[Tensor] | None = None  # [batch, length] each, 1 for tokens that count
        self.sums: dict[nn.Parameter, Tensor] = {}
        self.handles = []
        for name, module, weight in linear(model):
            self.sums[weight] = torch.zeros(len(weight), device=weight.device)
            of_decoder = ".decoder." in f".{name}" and not READS_ENCODER.search(name)
            add = partial(self._add, weight, of_decoder)
            self.handles.append(module.register_forward_hook(add))

    def open(self, inputs: dict[str, Tensor]) -> None:
        """Start to count; padding tokens of this batch do not count."""
        attended = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        masks = (attended != 0, inputs["labels"] != IGNORED)
        self.masks = [mask for mask in masks if mask.dim() == 2]

    def close(self) -> None:
        self.masks = None

    def reset(self) -> None:
        for total in self.sums.values():
            total.zero_()

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def totals(self, processes: int) -> dict[nn.Parameter, Tensor]:
        """The sums over all processes; each process has a part of the batch."""
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
        if self.masks is None or not module.training:
            return
        magnitudes = output.float().abs()
        for mask in reversed(self.masks) if of_decoder else self.masks:
            if mask.shape == magnitudes.shape[:-1]:
                magnitudes = magnitudes * mask.to(magnitudes.device).unsqueeze(-1)
                break
        self.sums[weight] += magnitudes.flatten(0, -2).sum(0)


def largest(sums: Tensor, threshold: float) -> Tensor:
    """The mask of the ceil((1 - threshold) n) largest of n sums, with all that equal the last one.

    The count is exact: it is computed from the decimal digits of the threshold.
    """
    count = math.ceil((1 - Fraction(str(threshold))) * len(sums))
    return sums >= sums.topk(count).values[-1]


class MIGU(Method):
    """Keeps only the gradients of those rows of each linear layer that have the largest outputs.

        n_i = sum over the step's tokens |y_i|,   g_i <- 0 unless n_i is among the largest

    (1 - threshold) of the layer's rows, rounded up (Du et al. 2024, 2406.17245). The interpolated
    quantile of the authors keeps at most one row less; rows with equal sums are kept together. The
    rows of A are chosen by |A x|, those of B by the output of the whole layer, |W x + s B A x|.
    This is the form in the paper; the published code for LoRA seems to mask nothing. Padding does
    not count (in the authors' code it does), but remembered rows in the batch do. Biases and heads
    are not masked; the authors mask the head over the vocabulary and the weights tied to it.

    By default only gradients are masked, as the authors do: Adam's momentum and weight decay still
    change the other rows. `strict` restores those rows after the step. Pulls (`l2`, `ewc`, `mas`,
    `si`) are masked wherever they are in the list; what other methods later in the list add to the
    gradient (`agem`, `der`) is not.

    State: none. Old rows: none. Cost: a sum over the outputs of each layer; with `strict` a copy of
    the masked rows. The first task is plain fine-tuning.

    Args:
        threshold: the share of the rows that get no gradient, from 0 to less than 1.
        strict: whether the masked rows do not change at all.
    """

    family: ClassVar[Family] = "gradient and weights"
    paper: ClassVar[str] = "https://huggingface.co/papers/2406.17245"
    neutral: ClassVar[dict[str, Any]] = {"threshold": 0.0}
    keeps: ClassVar[Keeps] = Keeps(share=0.2, second_loss=0.3, keywords={"strict": True})

    def __init__(self, threshold: float = 0.7, strict: bool = False):
        if not 0 <= threshold < 1:
            raise PerdureError(f"migu: needs 0 <= threshold < 1, got {threshold}; 0 masks nothing")
        self.threshold, self.strict = threshold, strict
        self.magnitudes: Magnitudes | None = None

    def check(self, config: Config, kind: Kind) -> None:
        super().check(config, kind)
        if (config.adapter or {}).get("use_dora"):  # DoRA passes an identity matrix through A
            raise PerdureError(
                "migu: cannot measure the outputs of rows with DoRA; set adapter.use_dora=false"
            )

    def on_train_begin(self, args, state, control, model: Any = None, **kwargs):
        self.processes, self.held = args.world_size, []
        if self.context.stage > 1:
            self.magnitudes = Magnitudes(model)
            if not self.magnitudes.sums:
                raise PerdureError("migu: no linear layer is trained; set adapter={}")

    def on_step_begin(self, args, state, control, **kwargs):
        if self.magnitudes:
            self.magnitudes.reset()

    def before_step(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.magnitudes:
            self.magnitudes.open(inputs)
        return inputs

    def extra_loss(self, model: nn.Module, inputs: dict[str, Tensor], outputs: Any) -> None:
        # The forward pass of the batch is over; those of other methods do not count.
        if self.magnitudes:
            self.magnitudes.close()

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module) -> None:
        sums = self.magnitudes.totals(self.processes) if self.magnitudes else {}
        for weight, row_sums in sums.items():
            if weight.grad is not None:
                masked = ~largest(row_sums, self.threshold)
                weight.grad.masked_fill_(masked.unsqueeze(-1), 0.0)
                if self.strict:
                    self.held.append((weight, masked, weight[masked]))

    @torch.no_grad()
    def on_optimizer_step(self, args, state, control, **kwargs):
        for weight, masked, before in self.held:
            weight[masked] = before
        self.held = []

    def end_task(self, model: nn.Module) -> None:
        if self.magnitudes:
            self.magnitudes.remove()
        self.magnitudes = None
