"""The size of a task before it is learned: its rows, tokens and optimizer steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments

from perdure.config import GROUPED
from perdure.data.rows import Row
from perdure.data.tokens import IGNORED
from perdure.models.kinds import Kind
from perdure.train.grouping import grouped_order, length, padding_share
from perdure.train.step import rows_of_a_step


@dataclass
class Count:
    """The numbers of a task's rows. `tokens` includes the prompts; `learned` have a loss."""

    rows: int
    tokens: int
    learned: int
    longest: int
    truncated: int


def count(features: Sequence[dict[str, Any]], truncated: int, kind: Kind) -> Count:
    """Count the features of `data.tokens.features`. An encoder learns one label per row."""
    lengths = [length(feature, kind) for feature in features]
    learned = len(features)
    if kind != "encoder":
        learned = sum(label != IGNORED for feature in features for label in feature["labels"])
    return Count(len(features), sum(lengths), learned, max(lengths), truncated)


def padding(
    features: Sequence[dict[str, Any]], args: TrainingArguments, kind: Kind, strategy: str
) -> float:
    """Return the share of padding in the batches of the first epoch, without remembered rows.

    `args` are those of the stage, with its seed, and `strategy` is the `train_sampling_strategy`.
    If rows are in random order, it is that of one such order.
    """
    if strategy == GROUPED:
        lengths = [length(feature, kind) for feature in features]
        order = grouped_order(lengths, rows_of_a_step(args), args.seed, epoch=0)
    else:
        generator = torch.Generator().manual_seed(args.seed)
        order = torch.randperm(len(features), generator=generator).tolist()
    size = args.per_device_train_batch_size
    whole_batches = len(order) // size * size
    if args.dataloader_drop_last and whole_batches:
        order = order[:whole_batches]
    return padding_share(features, order, size, kind)


def steps_of(args: TrainingArguments, rows: int) -> int:
    """Return the number of optimizer steps that the Trainer takes on this number of rows."""
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * steps_an_epoch(args, rows))


def steps_an_epoch(args: TrainingArguments, rows: int) -> int:
    """Return the number of optimizer steps in which the Trainer takes each row once."""
    batches = math.ceil(rows / (args.per_device_train_batch_size * args.world_size))
    if args.dataloader_drop_last:
        batches = rows // (args.per_device_train_batch_size * args.world_size)
    return max(math.ceil(batches / args.gradient_accumulation_steps), 1)


def sample(rows: Sequence[Row], lengths: Sequence[int], rows_a_step: int, steps: int) -> list[Row]:
    """Choose rows for a few steps: first the longest rows, then rows of all lengths."""
    order = sorted(range(len(rows)), key=lambda i: -lengths[i])
    others = max(rows_a_step * (steps - 1), 1)
    spread = [order[i * len(order) // others] for i in range(others)]
    return [rows[i] for i in [*order[:rows_a_step], *spread]]
