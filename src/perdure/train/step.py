"""The parts of a training step on any rows: the loss, the gradient in micro-batches, the update.

Perdure's own engine (`trainer.py`) and callbacks of other Trainers both use them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from perdure.models.decoder import decoder_inputs
from perdure.models.head import predicting, run_with_logits_at
from perdure.models.kinds import Kind
from perdure.seeds import forked
from perdure.train.losses import count_items, token_loss


def rows_of_a_step(args: TrainingArguments) -> int:
    """The number of new rows in a full optimizer step, over all micro-batches and devices.

    The steps that a method takes on memory have as many rows by default. All processes use the same
    rows in them, so two processes learn the same as one process with twice the batch size.
    """
    micro_batches = args.gradient_accumulation_steps * args.world_size
    return args.train_batch_size * micro_batches  # of all GPUs of a process in `nn.DataParallel`


def task_loss(
    model: nn.Module,
    bare: Any,
    inputs: dict[str, Tensor],
    kind: Kind,
    num_items: Tensor | int | None = None,
) -> tuple[Tensor, Any]:
    """The task loss, by the same rule for every kind of model, and the model's outputs.

    The outputs' `logits` are [positions, choices], those that predict a label (`models.head`).

    Args:
        model: the model to call; it may be wrapped, for example in DDP.
        bare: the same model without wrappers, which shifts the labels of an encoder-decoder.
        inputs: a collated batch, with labels.
        kind: the kind of model.
        num_items: divides the summed loss; by default the number of labels in the batch.
    """
    labels = inputs["labels"]
    model_inputs = {k: v for k, v in inputs.items() if k != "labels"}
    if kind == "seq2seq":
        model_inputs["decoder_input_ids"] = decoder_inputs(bare, labels)
    where = predicting(labels, kind)
    if kind == "encoder":
        outputs = model(**model_inputs)
        outputs.logits = outputs.logits[where]
    else:
        outputs = run_with_logits_at(model, bare, where, **model_inputs)
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

    The rows go through in micro-batches of `size`, that of the training, so that old rows need no
    more memory than new ones. `backward` gets a batch and the number of items in all batches. All
    random draws, in the collator and for dropout, come from `seed`, so that the Trainer's own draws
    stay the same.
    """
    with forked(seed):
        batches = [collate(rows[i : i + size]) for i in range(0, len(rows), size)]
        items = torch.stack([count_items(batch, kind) for batch in batches]).sum()
        for batch in batches:
            backward(batch, items)


def gradient_of(parameters: Sequence[nn.Parameter], backward: Callable[[], None]) -> list[Tensor]:
    """The gradient that `backward` computes, one tensor for each parameter; `.grad` is restored."""
    saved = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    backward()
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for p, grad in zip(parameters, saved, strict=True):
        p.grad = grad
    return gradient


def clip_and_step(
    parameters: Sequence[nn.Parameter],
    optimizer: Optimizer,
    max_norm: float | None,
    clip: Callable[..., Any] = nn.utils.clip_grad_norm_,
    norm: Tensor | None = None,
) -> Any:
    """Finish a step: clip the gradients, update the parameters, and delete the gradients.

    Args:
        parameters: those that the optimizer updates.
        optimizer: takes the step.
        max_norm: the largest norm of the gradients; None and 0 do not clip them.
        clip: clips them and returns the norm that they had.
        norm: that norm, if it is known, so that `clip` need not compute it.

    Returns:
        The norm of the gradients before they were clipped, None if they are not clipped.
    """
    if not max_norm or max_norm <= 0:
        norm = None
    elif norm is None:
        norm = clip(parameters, max_norm)
    else:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    optimizer.step()
    for p in parameters:
        p.grad = None
    return norm
