"""An encoder with a linear head that grows."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput


def without_head(model: nn.Module) -> Any:
    """Return the part of a model that can have an adapter: an encoder without its head."""
    return model.backbone if isinstance(model, Classifier) else model


class Classifier(nn.Module):
    """An encoder with a linear head on the mean of its last hidden states.

    logits = mean_t(h_t) W^T + b, where t runs over the positions of the attention mask, h has shape
    [batch, time, width] and W has shape [labels, width]. `grow` appends rows for new labels and
    keeps the old rows to the bit.
    """

    def __init__(self, backbone: nn.Module, width: int):
        super().__init__()
        self.backbone = backbone
        self.labels: list[str] = []
        self.weight = nn.Parameter(torch.zeros(0, width))
        self.bias = nn.Parameter(torch.zeros(0))
        self.pooled = nn.Identity()  # for hooks that need the input of the head

    def grow(self, labels: tuple[str, ...], seed: int) -> None:
        """Append a row for each new label, with weights from N(0, 0.02^2) and a bias of 0."""
        new = [label for label in labels if label not in self.labels]
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(len(new), self.weight.shape[1], generator=generator) * 0.02
        self.set_head(
            torch.cat([self.weight.detach(), rows.to(self.weight.device)]),
            torch.cat([self.bias.detach(), self.bias.new_zeros(len(new))]),
            self.labels + new,
        )

    def set_head(self, weight: Tensor, bias: Tensor, labels: list[str]) -> None:
        """Replace the head by `weight` [labels, width] and `bias` [labels]."""
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.labels = list(labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        outputs = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        hidden, mask = outputs.last_hidden_state.float(), attention_mask.unsqueeze(-1).float()
        mean = self.pooled((hidden * mask).sum(1) / mask.sum(1).clamp(min=1))
        with torch.autocast(mean.device.type, enabled=False):
            logits = nn.functional.linear(mean, self.weight, self.bias)
        return SequenceClassifierOutput(logits=logits)  # type: ignore[arg-type]
