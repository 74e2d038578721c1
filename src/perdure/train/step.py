"""A step on given rows, whoever owns the model: its loss, its gradient in micro-batches, the step.

Perdure's own engine (`trainer.py`) and a callback of another Trainer both take these.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from perdure.models.decoder import decoder_inputs
from perdure.models.kinds import Kind
from perdure.seeds import forked
from perdure.train.losses import count_items, token_loss


def rows_of_a_step(args: TrainingArguments) -> int:
    """The new rows of a full optimizer step: of all its micro-batches, on all processes.

    A method's own steps on memory have as many rows by default. Every process takes them on the
    same rows, so two processes learn what one does on twice the batch.
    """
    micro_batches = args.gradient_accumulation_steps * args.world_size
    return args.per_device_train_batch_size * micro_batches


def task_loss(
    model: nn.Module,
    bare: Any,
    inputs: dict[str, Tensor],
    kind: Kind,
    num_items: Tensor | int | None = None,
) -> tuple[Tensor, Any]:
    """The task loss, the same rule for every kind of model, and the model's outputs.

    `model` is called, wrapped or not; `bare` is the same one without wrappers, which knows how its
    decoder is shown the target.
    """
    labels = inputs["labels"]
    seen = {k: v for k, v in inputs.items() if k != "labels"}
    if kind == "seq2seq":
        seen["decoder_input_ids"] = decoder_inputs(bare, labels)
    outputs = model(**seen)
    items = count_items(inputs, kind) if num_items is None else num_items
    return token_loss(outputs.logits, labels, items, kind), outputs


def accumulate(
    rows: Sequence[dict[str, Any]],
    seed: int,
    size: int,
    collate: Callable[[Any], dict[str, Tensor]],
    kind: Kind,
    backward: Callable[[dict[str, Tensor], Tensor], None],
) -> None:
    """Add the gradient of the task loss on `rows` to `.grad`.

    In micro-batches of the training's `size`: old rows need no more memory than new. `backward`
    takes a batch and the items of all of them. Whatever is drawn, in the collator or as dropout,
    comes from `seed`, so that the Trainer's own draws do not move.
    """
    with forked(seed):
        batches = [collate(rows[i : i + size]) for i in range(0, len(rows), size)]
        items = torch.stack([count_items(batch, kind) for batch in batches]).sum()
        for batch in batches:
            backward(batch, items)


def aside(parameters: Sequence[nn.Parameter], backward: Callable[[], None]) -> list[Tensor]:
    """The gradient that `backward` leaves, a tensor a parameter; `.grad` is as it was before."""
    kept = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    backward()
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for p, grad in zip(parameters, kept, strict=True):
        p.grad = grad
    return gradient


def clip_and_step(
    parameters: Sequence[nn.Parameter],
    optimizer: Optimizer,
    max_norm: float | None,
    clip: Callable[..., Any] = nn.utils.clip_grad_norm_,
) -> None:
    """The end of a step: clip, step, and leave no gradients."""
    if max_norm and max_norm > 0:
        clip(parameters, max_norm)
    optimizer.step()
    for p in parameters:
        p.grad = None
