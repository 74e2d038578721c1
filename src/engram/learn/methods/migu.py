"""Updates of the rows with large outputs alone."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engram.config import Config
from engram.data.tokens import Kind
from engram.errors import EngramError
from engram.learn.magnitudes import Magnitudes, largest
from engram.learn.methods.base import Family, Method


class MIGU(Method):
    """Keeps the gradient of those rows of each linear layer whose outputs are largest.

        n_i = sum over the step's tokens |y_i|,   g_i <- 0 unless n_i is among the largest

    (1 - threshold) of the layer's rows, rounded up (Du et al. 2024, 2406.17245; the authors'
    interpolated quantile keeps at most one row less; equal sums are kept together). A's rows are
    chosen by |A x|, B's by the output of the whole layer, |W x + s B A x|: the paper's form, where
    the published LoRA code seems to mask nothing. Padding is not counted (the authors count it);
    remembered rows in the batch are. Biases and an encoder's head are not masked, nor is the head
    over the vocabulary, which the authors mask with whatever is tied to it.

    By default gradients alone are masked, as the authors do: Adam's momentum and weight decay still
    move the other rows. `strict` puts those back after the step. What methods named after it add
    to the gradient is not masked.

    State: none. Old rows: none. Cost: a sum over the outputs of each layer; with `strict` a copy of
    the masked rows. The first task is plain fine-tuning.

    Args:
        threshold: share of the rows that get no gradient, from 0 to less than 1.
        strict: whether the masked rows keep their bits.
    """

    family: ClassVar[Family] = "gradient and weights"
    paper: ClassVar[str] = "https://huggingface.co/papers/2406.17245"
    neutral: ClassVar[dict[str, Any]] = {"threshold": 0.0}

    def __init__(self, threshold: float = 0.7, strict: bool = False):
        if not 0 <= threshold < 1:
            raise EngramError(f"migu: needs 0 <= threshold < 1, got {threshold}; 0 masks nothing")
        self.threshold, self.strict = threshold, strict
        self.seen: Magnitudes | None = None

    def check(self, config: Config, kind: Kind) -> None:
        super().check(config, kind)
        if (config.adapter or {}).get("use_dora"):  # its norms pass an identity through A
            raise EngramError(
                "migu: cannot tell a row's output under DoRA; set adapter.use_dora=false"
            )

    def on_train_begin(self, args, state, control, model: Any = None, **kwargs):
        self.processes, self.held = args.world_size, []
        if self.context.stage > 1:
            self.seen = Magnitudes(model)
            if not self.seen.sums:
                raise EngramError("migu: finds no linear layer that is trained; set adapter={}")

    def on_step_begin(self, args, state, control, **kwargs):
        if self.seen:
            self.seen.reset()

    def before_step(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.seen:
            self.seen.open(inputs)
        return inputs

    def extra_loss(self, model: nn.Module, inputs: dict[str, Tensor], outputs: Any) -> None:
        if self.seen:  # the batch's own pass is over; further ones are other methods'
            self.seen.close()

    @torch.no_grad()
    def edit_gradients(self, model: nn.Module) -> None:
        sums = self.seen.totals(self.processes) if self.seen else {}
        for weight, of_weight in sums.items():
            if weight.grad is not None:
                masked = ~largest(of_weight, self.threshold)
                weight.grad.masked_fill_(masked.unsqueeze(-1), 0.0)
                if self.strict:
                    self.held.append((weight, masked, weight[masked]))

    @torch.no_grad()
    def on_optimizer_step(self, args, state, control, **kwargs):
        for weight, masked, before in self.held:
            weight[masked] = before
        self.held = []

    def end_task(self, model: nn.Module) -> None:
        if self.seen:
            self.seen.remove()
        self.seen = None
