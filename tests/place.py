"""A tiny base and the rows of two tasks on disk, and lineages made of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from perdure.api import run
from perdure.config import Config, load_config
from perdure.data.stream import file_split
from perdure.data.task import Task
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import base_at, stage_entry
from perdure.say import Say, silent
from perdure.verbs import init as init_verb
from perdure.verbs import learn as learn_verb
from tiny import save_tiny, tiny_rows


NAMES = ("colour", "animal")


def setting_for(kind: str, folder: Path, n: int = 40) -> dict[str, Any]:
    """The settings of a run over `n` rows a task, whose base and rows are in `folder`."""
    save_tiny(kind, folder / "base")
    tasks = []
    for name in NAMES:
        files = {split: folder / f"{name}-{split}.jsonl" for split in ("train", "test")}
        for (split, file), count in zip(files.items(), (n, 10), strict=True):
            rows = tiny_rows(name, count, seed=int(split == "test"))
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks.append({"name": name, **{split: str(file) for split, file in files.items()}})
    return {
        "base": str(folder / "base"),
        "tasks": tasks,
        "memory": {"ratio": 0.1},
        "training": {"learning_rate": 1e-2, "num_train_epochs": 1},
        "max_completion_length": 4,
        "threads": 1,
    }


def learned(setting: dict[str, Any], path: str | Path, **more: Any) -> Lineage:
    """The lineage of a run with these settings."""
    return run(load_config({**setting, **more, "lineage": str(path)}))


def output(model: Any, tokenizer: Any, prompt: str = tiny_rows("colour")[0]["prompt"]) -> Tensor:
    """What a plain model makes of a prompt: logits, or an encoder's hidden states."""
    batch = tokenizer(prompt, return_tensors="pt")
    batch = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"]
    with torch.no_grad():
        outputs = model.eval()(**batch)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def stage_output(path: str | Path, stage: int | None = None) -> Tensor:
    """`output` of a stage as Perdure loads it, without an encoder's head."""
    lineage = Lineage(path)
    base = base_at(lineage, stage_entry(lineage, stage))
    return output(base.network, base.tokenizer)


def task(name: str, training: dict[str, Any] | None = None) -> Task:
    """A task of the folder the test stands in."""
    files = (f"{name}-train.jsonl", f"{name}-test.jsonl")
    train, test = (file_split(file, None, 0) for file in files)
    return Task(name, train, test=test, training=training or {})


def init(path: str | Path, config: Config, adapter: str | Path | None = None) -> Lineage:
    """`perdure.init` with settings that are checked already."""
    return init_verb.init(path, config, adapter)


def learn(
    path: str | Path,
    task: Task,
    data: str | Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    say: Say = silent,
) -> dict[str, Any]:
    """`perdure.learn` with a task that is read already."""
    return learn_verb.learn(path, task, data, callbacks, say)
