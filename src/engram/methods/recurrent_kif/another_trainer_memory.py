"""The memory that a user gives to a callback, as features for the collator of its Trainer."""

import importlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from datasets import Dataset
from transformers import TrainingArguments

from engram.errors import EngramError


RAW = ("prompt", "completion", "messages", "text", "conversations")
Features = list[dict[str, Any]]


def features_by_task(
    given: Any, args: TrainingArguments, trained: Any, tokenizer: Any, where: str
) -> dict[str, Features]:
    """Features by task; the collator takes them as it takes the rows of `trained`.

    Args:
        given: None, a dataset of features or of raw rows, or one for each task by its name.
        args: the Trainer's. Where they are SFTTrainer's, rows are prepared as it prepares its own.
        trained: the dataset that the Trainer reads.
        tokenizer: the Trainer's processing class, if it has one.
        where: begins each error line.

    Raises:
        EngramError: rows that are no dictionaries, or raw ones where nothing can tokenize them.
    """
    if given is None:
        return {}
    tasks = given if isinstance(given, Mapping) else {"memory": given}
    return {str(k): _features(v, args, trained, tokenizer, where) for k, v in tasks.items()}


def is_sft(args: TrainingArguments) -> bool:
    """Whether these are arguments of TRL's SFTTrainer, told without importing it."""
    bases = type(args).__mro__
    return any(c.__name__ == "SFTConfig" and c.__module__.startswith("trl.") for c in bases)


def _features(
    dataset: Any, args: TrainingArguments, trained: Any, tokenizer: Any, where: str
) -> Features:
    rows = list(dataset)
    if not all(isinstance(row, Mapping) for row in rows):
        raise EngramError(
            f"{where}: memory has rows of {type(rows[0]).__name__}; give a dataset, a list of "
            "dictionaries, or {task: dataset}"
        )
    if rows and is_sft(args):
        rows = _as_sft(dataset if isinstance(dataset, Dataset) else rows, args, tokenizer, where)
    elif any("input_ids" not in row and set(row) & set(RAW) for row in rows):
        raise EngramError(
            f"{where}: memory has raw rows ({', '.join(rows[0])}), and this Trainer has no way of "
            "tokenizing them; give features, made as those of its train_dataset"
        )
    # The Trainer has dropped the columns that its model does not take.
    columns = trained.column_names if isinstance(trained, Dataset) else None
    return [{k: v for k, v in row.items() if columns is None or k in columns} for row in rows]


def _as_sft(dataset: Any, args: Any, tokenizer: Any, where: str) -> Features:
    """By SFTTrainer's own preparation, which needs little of the trainer; packing would mix tasks.

    It does nothing to what has `input_ids` and `labels` but cut it to `max_length`.
    """
    sft: Any = importlib.import_module("trl.trainer.sft_trainer")
    dataset = dataset if isinstance(dataset, Dataset) else Dataset.from_list(dataset)
    template = None
    if args.assistant_only_loss and not sft.has_generation_markers(tokenizer.chat_template):
        template = sft.get_training_chat_template(tokenizer)
    completion_only = args.completion_only_loss
    if completion_only is None:
        completion_only = {"prompt", "completion"} <= set(dataset.column_names)
    trainer: Any = SimpleNamespace(
        _tokenizer=getattr(tokenizer, "tokenizer", tokenizer),  # a processor has one inside
        chat_template=template,
        completion_only_loss=completion_only,
    )
    settings = {**vars(args), "shuffle_dataset": False}
    try:
        prepared = sft.SFTTrainer._prepare_dataset(
            trainer, dataset, tokenizer, SimpleNamespace(**settings), False, None, "memory"
        )
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise EngramError(
            f"{where}: SFTTrainer cannot prepare the rows of memory "
            f"({type(error).__name__}: {why}); give features with input_ids and labels"
        ) from error
    if not len(prepared):
        raise EngramError(
            f"{where}: no row of memory has a label left at max_length={args.max_length}; raise it"
        )
    return list(prepared)
