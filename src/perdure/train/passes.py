"""Counts the rows that pass through the model while a stage is learned."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Passes:
    """Counts forward and backward passes of rows, as a measure of what a method costs.

    New and remembered rows count, and rows on which a method only reads the outputs of the model or
    of a teacher; rows that are scored do not. A row that passes twice counts twice. The counts are
    saved in checkpoints with the methods' tensors, so that a resumed run counts the same as one
    that was never stopped.
    """

    name = "(passes)"  # in the checkpoint; the parentheses keep it apart from methods' names

    def __init__(self):
        self.forward = self.backward = 0

    @contextmanager
    def through(self, model: nn.Module, compiled: bool = False) -> Iterator[None]:
        """Count the rows that pass through a model."""
        hook: Any = self._count_forward
        if compiled:
            hook = torch.compiler.disable(hook)
        handle = model.register_forward_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def counting_as(self, rows: int) -> Iterator[None]:
        """Count a block that generates texts as one forward pass of each of its `rows` rows.

        With a cache, every token of a generated text passes through the model once.
        """
        before = self.forward
        yield
        self.forward = before + rows

    def _count_forward(
        self, module: nn.Module, arguments: tuple[Any, ...], inputs: Any, outputs: Any
    ) -> None:
        # The logits may be those of some positions only. A pass that generates has no prompt.
        ids = inputs.get("input_ids", inputs.get("decoder_input_ids"))
        rows = len(outputs.logits if ids is None else ids)
        if "position_ids" in inputs and "attention_mask" not in inputs:  # packed into one sequence
            rows = int(inputs["position_ids"].eq(0).sum())

        def count_backward(gradient: Tensor) -> None:
            self.backward += rows

        self.forward += rows
        if outputs.logits.requires_grad:
            outputs.logits.register_hook(count_backward)

    def state_dict(self) -> dict[str, Tensor]:
        return {"rows": torch.tensor([self.forward, self.backward])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.forward, self.backward = state["rows"].tolist()
