"""How much a task is, before it is learned: rows, tokens, optimizer steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from perdure.data.rows import Row
from perdure.data.tokens import IGNORED
from perdure.models.kinds import Kind


@dataclass
class Count:
    """Of the rows of one task: `tokens` with prompts, `learned` those with a loss."""

    rows: int
    tokens: int
    learned: int
    longest: int
    truncated: int


def count(features: Sequence[dict[str, Any]], truncated: int, kind: Kind) -> Count:
    """What `data.tokens.features` made, counted; an encoder learns one label a row."""
    lengths = [length(feature, kind) for feature in features]
    learned = len(features)
    if kind != "encoder":
        learned = sum(label != IGNORED for feature in features for label in feature["labels"])
    return Count(len(features), sum(lengths), learned, max(lengths), truncated)


def length(feature: dict[str, Any], kind: Kind) -> int:
    """Tokens that one row takes through the model."""
    target = len(feature["labels"]) if kind == "seq2seq" else 0
    return len(feature["input_ids"]) + target


def steps_of(args: TrainingArguments, rows: int) -> int:
    """The number of optimizer steps that the Trainer takes on that many rows."""
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(rows / (args.per_device_train_batch_size * args.world_size))
    if args.dataloader_drop_last:
        batches = rows // (args.per_device_train_batch_size * args.world_size)
    each = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    return math.ceil(args.num_train_epochs * each)


def sample(rows: Sequence[Row], lengths: Sequence[int], each: int, steps: int) -> list[Row]:
    """Rows for a few steps of `each` rows: the longest first, then rows of every length."""
    order = sorted(range(len(rows)), key=lambda i: -lengths[i])
    others = max(each * (steps - 1), 1)
    spread = [order[i * len(order) // others] for i in range(others)]
    return [rows[i] for i in [*order[:each], *spread]]
