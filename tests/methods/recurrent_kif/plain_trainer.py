"""A plain_trainer Trainer on the tiny models, and Perdure's own engine on the same draws."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertForSequenceClassification,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from perdure.methods.recurrent_kif.method import RecurrentKIF
from perdure.models.base import Base
from perdure.seeds import derive, forked
from perdure.train.arguments import training_arguments
from perdure.train.memory import Memory
from perdure.train.method import TaskContext
from perdure.train.trainer import ContinualTrainer
from tiny import tiny_model, tiny_tokenizer
from train.engine import STRICT, tiny_base, tokenized


SEED = 7  # of the arguments, here and in `train.engine`
PLAIN = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_strategy": "no",
    "save_strategy": "no",
    "dataloader_pin_memory": False,
    "use_cpu": True,
    "seed": SEED,
    **STRICT,
}


def base_of(kind: str, dropout: float = 0.1) -> Base:
    """`tiny_base`, but an encoder is a classifier of transformers, with its own head."""
    if kind != "encoder":
        return tiny_base(kind, dropout)
    config = tiny_model(kind).config
    config.num_labels, config.hidden_dropout_prob = 6, dropout
    with forked(0):
        model = BertForSequenceClassification(config)
    return Base("tiny", "encoder", model, tiny_tokenizer(kind))


def features(kind: str, mapping: str, n: int = 40) -> list[dict]:
    return tokenized(tiny_base(kind), mapping, n)


def collator(base: Base) -> Any:
    if base.kind == "encoder":
        return DataCollatorWithPadding(base.tokenizer)
    return DataCollatorForSeq2Seq(base.tokenizer, base.model)


def plain_trainer(
    base: Base,
    work: Path,
    callback: Any = None,
    rows: int = 40,
    trainer: type = Trainer,
    arguments: type = TrainingArguments,
    callbacks: Any = (),
    **training: Any,
) -> Any:
    """A Trainer that knows nothing of Perdure, with the callback in it."""
    return trainer(
        model=base.model,
        args=arguments(output_dir=str(work), **{**PLAIN, **training}),
        train_dataset=features(base.kind, "colour", rows),
        data_collator=collator(base),
        callbacks=[*([callback] if callback else []), *callbacks],
    )


def perdure_engine(
    base: Base, work: Path, keywords: dict, rows: int = 40, **training
) -> ContinualTrainer:
    """Perdure's own engine, with the random draws that the callback makes."""
    arguments = {"per_device_train_batch_size": 4, "num_train_epochs": 1, **STRICT, **training}
    memory = Memory({"animal": features(base.kind, "animal", 6)}, derive(SEED, "memory"))
    method = RecurrentKIF(**keywords)
    context = TaskContext("", 0, derive(SEED, "recurrent_kif"), memory, {})
    method.begin_task(base.model, context)
    args = training_arguments(arguments, work, SEED, 0)
    return ContinualTrainer(base, [method], features(base.kind, "colour", rows), args)


def kif_callback(kind: str, n: int = 6, **keywords: Any) -> RecurrentKIF:
    return RecurrentKIF(memory={"animal": features(kind, "animal", n)}, **keywords)


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def run(kind: str, work: Path, callback: Any = None, base: Any = None, **settings: Any) -> dict:
    """The weights that a plain_trainer Trainer ends in."""
    base = base or base_of(kind)
    plain_trainer(base, work, callback, **settings).train()
    return trained(base.model)


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> tuple[float, int]:
    """The largest difference, and how many weights differ by more than rounding."""
    assert a.keys() == b.keys()
    pairs = [(a[k], b[k]) for k in a]
    far = sum(int((~torch.isclose(x, y, rtol=1e-3, atol=1e-4)).sum()) for x, y in pairs)
    return max(float((x - y).abs().max()) for x, y in pairs), far
