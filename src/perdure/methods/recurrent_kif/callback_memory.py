"""Converts the memory that a user passes to a callback to features for the Trainer's collator."""

import importlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from datasets import Dataset
from transformers import TrainingArguments

from perdure.data.tokens import Features
from perdure.errors import PerdureError, one_line


RAW = ("prompt", "completion", "messages", "text", "conversations")


def features_by_task(
    memory: Any, args: TrainingArguments, train_dataset: Any, tokenizer: Any, where: str
) -> dict[str, list[Features]]:
    """The memory's features by task, with the columns that the Trainer's own features have.

    Args:
        memory: None, a dataset of features or of raw rows, or a mapping of task names to datasets.
        args: the Trainer's arguments. If they are SFTTrainer's, rows are prepared by SFTTrainer.
        train_dataset: the dataset that the Trainer trains on.
        tokenizer: the Trainer's processing class, if it has one.
        where: the start of each error message.

    Raises:
        PerdureError: rows are not dictionaries, or they are raw and this Trainer cannot tokenize
            them.
    """
    if memory is None:
        return {}
    tasks = memory if isinstance(memory, Mapping) else {"memory": memory}
    return {
        str(task): _features(dataset, args, train_dataset, tokenizer, where)
        for task, dataset in tasks.items()
    }


def is_sft(args: TrainingArguments) -> bool:
    """Whether these are arguments of TRL's SFTTrainer; TRL is not imported for this."""
    bases = type(args).__mro__
    return any(c.__name__ == "SFTConfig" and c.__module__.startswith("trl.") for c in bases)


def _features(
    dataset: Any, args: TrainingArguments, train_dataset: Any, tokenizer: Any, where: str
) -> list[Features]:
    rows = list(dataset)
    if not all(isinstance(row, Mapping) for row in rows):
        raise PerdureError(
            f"{where}: the rows of memory are of type {type(rows[0]).__name__}; pass a dataset, a "
            "list of dictionaries, or {task: dataset}"
        )
    if rows and is_sft(args):
        rows = _as_sft(dataset if isinstance(dataset, Dataset) else rows, args, tokenizer, where)
    elif any("input_ids" not in row and set(row) & set(RAW) for row in rows):
        raise PerdureError(
            f"{where}: memory has raw rows ({', '.join(rows[0])}), which this Trainer cannot "
            "tokenize; pass features, prepared like those of its train_dataset"
        )
    # The Trainer has removed the columns that its model does not accept.
    columns = train_dataset.column_names if isinstance(train_dataset, Dataset) else None
    return [{k: v for k, v in row.items() if columns is None or k in columns} for row in rows]


def _as_sft(dataset: Any, args: Any, tokenizer: Any, where: str) -> list[Features]:
    """Prepare the rows with SFTTrainer's own function, which needs only a few of its attributes.

    Packing is off, because it would mix tasks. Rows that have `input_ids` and `labels` are only
    truncated to `max_length`.
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
        _tokenizer=getattr(tokenizer, "tokenizer", tokenizer),  # a processor contains a tokenizer
        chat_template=template,
        completion_only_loss=completion_only,
    )
    settings = {**vars(args), "shuffle_dataset": False}
    try:
        prepared = sft.SFTTrainer._prepare_dataset(
            trainer,
            dataset,
            tokenizer,
            SimpleNamespace(**settings),
            packing=False,
            formatting_func=None,
            dataset_name="memory",
        )
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        why = one_line(error)
        raise PerdureError(
            f"{where}: SFTTrainer cannot prepare the rows of memory "
            f"({type(error).__name__}: {why}); pass features with input_ids and labels"
        ) from error
    if not len(prepared):
        raise PerdureError(
            f"{where}: no row of memory has a label left at max_length={args.max_length}; raise it"
        )
    return list(prepared)
