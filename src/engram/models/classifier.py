"""An encoder with a linear head that grows."""

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput


class Classifier(nn.Module):
    """An encoder with a linear head, one row a label, on the masked mean of the last hidden states.

    logits = mean_t(h_t) W^T + b over the positions t of the attention mask; h [batch, time, width],
    W [labels, width]. `grow` appends rows for new labels and keeps the old ones bitwise.
    """

    def __init__(self, backbone: nn.Module, width: int):
        super().__init__()
        self.backbone = backbone
        self.labels: list[str] = []
        self.weight = nn.Parameter(torch.zeros(0, width))
        self.bias = nn.Parameter(torch.zeros(0))
        self.pooled = nn.Identity()  # what the head sees, for who listens to its input

    def grow(self, labels: tuple[str, ...], seed: int) -> None:
        """Append a row for each label that is not known: weights N(0, 0.02^2), biases zero."""
        new = [label for label in labels if label not in self.labels]
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(len(new), self.weight.shape[1], generator=generator) * 0.02
        self.set_head(
            torch.cat([self.weight.detach(), rows.to(self.weight.device)]),
            torch.cat([self.bias.detach(), self.bias.new_zeros(len(new))]),
            self.labels + new,
        )

    def set_head(self, weight: Tensor, bias: Tensor, labels: list[str]) -> None:
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.labels = list(labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        outputs = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        hidden, mask = outputs.last_hidden_state.float(), attention_mask.unsqueeze(-1).float()
        mean = self.pooled((hidden * mask).sum(1) / mask.sum(1).clamp(min=1))
        with torch.autocast(mean.device.type, enabled=False):
            logits = nn.functional.linear(mean, self.weight, self.bias)
        return SequenceClassifierOutput(logits=logits)  # type: ignore[arg-type]
