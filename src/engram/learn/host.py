"""The engine of a guest: what a method may ask for, in a Trainer that is not Engram's.

A callback is told the Trainer's model, arguments and collator, and this is enough: gradients before
clipping are heard by hooks on the parameters, the steps on other rows are taken here.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from engram.data.tokens import Kind
from engram.learn.importance import flatten, write_back
from engram.learn.step import accumulate, clip_and_step, task_loss


Batch = dict[str, Any]


class Host:
    """The `Steps` protocol over the arguments of a callback's events.

    Under several processes every one of them takes the same steps on the same rows, so that the
    weights stay equal without a word between them.

    Args:
        args: the Trainer's.
        model: the Trainer's, not wrapped.
        collate: features to a batch, the Trainer's own.
        kind: how the loss reads the labels of a batch.
    """

    name = "host"  # of its tensors in a checkpoint

    def __init__(
        self,
        args: TrainingArguments,
        model: nn.Module,
        collate: Callable[[list[dict[str, Any]]], Batch],
        kind: Kind,
    ):
        self.args, self.model, self.collate = args, model, collate
        self.kind: Kind = kind
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.heard = [torch.zeros_like(p) for p in self.parameters]
        self.hearing = True
        self.hooks = [
            p.register_post_accumulate_grad_hook(partial(self._hear, at=at))
            for at, p in enumerate(self.parameters)
        ]

    def close(self) -> None:
        while self.hooks:
            self.hooks.pop().remove()
        self.heard = []

    # --- gradients of the Trainer's own step

    def _hear(self, parameter: Tensor, at: int) -> None:
        """After each micro-batch; what the last one of a step leaves is the whole gradient."""
        if self.hearing:
            assert parameter.grad is not None
            self.heard[at].copy_(parameter.grad)

    @contextmanager
    def complete_gradients(self) -> Iterator[None]:
        """`.grad` as it was before clipping, of all processes; then as the Trainer has it again."""
        if self.args.world_size > 1:  # a hook comes before the processes have shared theirs
            flat = flatten(self.heard)
            torch.distributed.all_reduce(flat)
            write_back(flat / self.args.world_size, self.heard)
        clipped = [p.grad for p in self.parameters]
        self._put(self.heard)
        yield
        self._put(clipped)
        torch._foreach_zero_(self.heard)  # pyright: ignore[reportPrivateImportUsage]

    def _put(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    # --- steps on other rows

    def fit_step(
        self,
        rows: list[dict[str, Any]],
        optimizer: Optimizer,
        seed: int,
        inspect: Callable[[], Any] = lambda: None,
    ) -> None:
        self._backward(rows, seed)
        inspect()
        clip_and_step(self.parameters, optimizer, self.args.max_grad_norm)

    def _backward(self, rows: list[dict[str, Any]], seed: int) -> None:
        size = self.args.per_device_train_batch_size
        self.model.train()
        self.hearing = False
        accumulate(rows, seed, size, self.collate, self.kind, self._backward_one)
        self.hearing = True

    def _backward_one(self, batch: Batch, items: Tensor) -> None:
        batch = for_model(batch, self.args)
        loss, _ = task_loss(self.model, self.model, batch, self.kind, items.to(self.args.device))
        loss.backward()

    # --- what a checkpoint says of the weights beside it

    def state_dict(self) -> dict[str, Tensor]:
        """The sha256 of the trainable weights, as bytes."""
        digest = hashlib.sha256()
        for parameter in self.parameters:
            digest.update(parameter.detach().float().cpu().contiguous().numpy().data)
        return {"weights": torch.tensor(list(digest.digest()), dtype=torch.uint8)}


def for_model(batch: Batch, args: TrainingArguments) -> Batch:
    """A batch of the collator's as the model takes it."""
    moved: Batch = send_to_device(dict(batch), args.device)
    if "position_ids" in moved and "attention_mask" not in moved:
        moved["use_cache"] = False  # with a cache, rows laid end to end would see each other
    return moved
