"""How many rows pass through the model while a stage is learned, whoever passes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Passes:
    """Rows that went forward, and those whose gradient came back: what a method costs, in counts.

    New rows and remembered ones, those that a method looks at or that a teacher answers; not those
    of scoring. A row that passes twice counts twice. It is kept in checkpoints beside the methods'
    tensors, so that a run that was stopped counts what one that was not does.
    """

    name = "(passes)"  # no method's

    def __init__(self):
        self.forward = self.backward = 0

    @contextmanager
    def through(self, model: nn.Module, compiled: bool = False) -> Iterator[None]:
        """Count what passes through a model that puts out logits [rows, ...]."""
        count: Any = torch.compiler.disable(self._count) if compiled else self._count
        handle = model.register_forward_hook(count)
        try:
            yield
        finally:
            handle.remove()

    def _count(self, module: nn.Module, given: Any, outputs: Any) -> None:
        self.forward += len(outputs.logits)
        if outputs.logits.requires_grad:
            outputs.logits.register_hook(self._came_back)

    def _came_back(self, gradient: Tensor) -> None:
        self.backward += len(gradient)

    def state_dict(self) -> dict[str, Tensor]:
        return {"rows": torch.tensor([self.forward, self.backward])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.forward, self.backward = state["rows"].tolist()
