"""Tiny checkpoints of one base, on disk."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from perdure.merging import output
from perdure.merging.model import open_checkpoint
from perdure.merging.rules import find
from perdure.merging.statistics import write_statistics
from perdure.models.stage_files import write_head
from tiny import tiny_model, tiny_tokenizer


def save_expert(folder: Path | str, seed: int, step: float = 0.01, **over: Any) -> Path:
    """A model that differs from the tiny base by a drawn step in each weight."""
    model = tiny_model("causal")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += step * torch.randn(parameter.shape, generator=generator)
    model.to(over.pop("dtype", torch.float32))
    model.save_pretrained(folder, **over)
    tiny_tokenizer("causal").save_pretrained(folder)
    return Path(folder)


def save_adapter(folder: Path | str, seed: int, base: str = "base", **settings: Any) -> Path:
    """A LoRA adapter of the base with drawn factors."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(task_type="CAUSAL_LM", **{"r": 3, "lora_alpha": 6, **settings})
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings", category=UserWarning)
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn_like(parameter)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return Path(folder)


def save_encoder(folder: Path | str, seed: int, labels: Sequence[str]) -> Path:
    """An encoder that differs from the tiny base, with a drawn head for some labels."""
    model = tiny_model("encoder")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    tiny_tokenizer("encoder").save_pretrained(folder)
    weight = torch.randn(len(labels), 32, generator=generator)
    write_head(labels, weight, torch.randn(len(labels), generator=generator), Path(folder))
    return Path(folder)


def weights_of(folder: Path | str) -> dict[str, Tensor]:
    """The tensors of a model's folder."""
    return {
        name: tensor
        for file in sorted(Path(folder).glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def merged_by_peft(base: Path | str, adapter: Path | str) -> dict[str, Tensor]:
    """The tensors of the base with an adapter merged in by PEFT."""
    from peft import PeftModel

    model: Any = AutoModelForCausalLM.from_pretrained(str(base))
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict()


def save_statistics(folder: Path | str, checkpoint: str, rule: str, seed: int) -> str:
    """Drawn statistics of a checkpoint, as if they had been measured for a rule."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in weights_of(checkpoint).items():
        if rule == "fisher":
            tensors[name] = torch.rand(tensor.shape, generator=generator).square()
        elif "_proj" in name:
            inputs = torch.randn(2 * tensor.shape[1], tensor.shape[1], generator=generator)
            tensors[name] = inputs.T @ inputs / len(inputs)
    Path(folder).mkdir(exist_ok=True)
    kind = "fisher" if rule == "fisher" else "gram"
    hashes = open_checkpoint(checkpoint).hashes
    write_statistics(Path(folder), kind, tensors, {"checkpoint": hashes, "rows": 1})
    return str(folder)


def measured_for(rule: str, *checkpoints: str) -> dict[str, Any]:
    """The arguments that `merge` needs for a rule: drawn statistics, or weights instead of rows."""
    if find(rule).learns:
        return {"weights": [1.0, 0.5, 0.25][: len(checkpoints)]}
    if find(rule).needs is None:
        return {}
    folders = [
        save_statistics(f"{Path(name).name}-{rule}", name, rule, seed)
        for seed, name in enumerate(checkpoints)
    ]
    return {"statistics": folders}


class Killed(BaseException):
    """What ends a process without any of its code."""


def stopped_again_and_again(merge: Callable[[], object], into: Path) -> None:
    """Merge, but stop after every fifth tensor is written and before its line is."""
    finish, count = output.Output.finish, 0

    def finish_or_stop(self, name, **facts):
        nonlocal count
        count += 1
        if count % 5 == 0:
            raise Killed
        finish(self, name, **facts)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(output.Output, "finish", finish_or_stop)
        for _ in range(30):
            try:
                merge()
            except Killed:
                assert not into.exists()
            else:
                return
    raise AssertionError("it does not go on")
