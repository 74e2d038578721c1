"""A bank of LoRA adapters, one a task, that is stored as one plain adapter.

    delta W = s sum_t B_t A_t = s [B_1 ... B_t] [A_1; ...; A_t],   s = lora_alpha / r

r and lora_alpha add up over the tasks, so s stays what it was. While a task is learned, its adapter
is `new`, active beside `default`, which holds all earlier ones and is frozen; joined, they are
`default` again. A method keeps the rank of one task, from which the next adapter is made.
"""

import copy
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from engram.config import Config
from engram.errors import EngramError
from engram.methods.shared.lora import factors, layers
from engram.models.classifier import Classifier
from engram.seeds import derive, forked


OLD, NEW = "default", "new"
# Settings of an adapter that do not keep its rank from growing.
FIT = {
    *("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
}
UNSET = (None, False, "none", [], {})
STARTS = (True, "gaussian")  # values of init_lora_weights with B = 0, which leave the base alone


def check(name: str, config: Config) -> None:
    """Refuse an adapter whose rank cannot simply grow.

    Raises:
        EngramError: with the setting to change.
    """
    for key, value in (config.adapter or {}).items():
        fits = value in STARTS if key == "init_lora_weights" else value in UNSET
        if key not in FIT and not fits:
            raise EngramError(
                f"{name}: joins LoRA adapters by rank, which adapter.{key}={value} does not allow; "
                "leave it out"
            )


def rank(model: nn.Module) -> int:
    """The rank of `default`.

    Raises:
        EngramError: it sits on an embedding, whose factors have other shapes.
    """
    for name, layer in layers(model):
        if OLD not in layer.lora_A:
            raise EngramError(
                f"adapter: {name} is no linear layer, and a bank of adapters takes no other; leave "
                "it out of target_modules"
            )
    return _settings(model).r


def add(model: nn.Module, rank: int, seed: int) -> None:
    """Freeze `default` and train `new` of that rank beside it: A drawn from `seed`, B zero."""
    peft, settings = _peft(model), copy.deepcopy(_settings(model))
    settings.lora_alpha = type(settings.lora_alpha)(settings.lora_alpha * rank / settings.r)
    settings.r, settings.inference_mode = rank, False
    with forked(derive(seed, "adapter")):
        peft.add_adapter(NEW, settings)
    peft.base_model.set_adapter([OLD, NEW])  # type: ignore[operator]  # trains both
    peft.set_requires_grad(OLD, requires_grad=False)


@torch.no_grad()
def join(model: nn.Module) -> None:
    """Put `new` into `default`, which is then trained as a whole, if there is a `new`."""
    peft = _peft(model)
    if NEW not in peft.peft_config:
        return
    joined, new = _settings(model), _settings(model, NEW)
    joined.r, joined.lora_alpha = joined.r + new.r, joined.lora_alpha + new.lora_alpha
    old, own = factors(model, OLD), factors(model, NEW)
    for name, layer in layers(model):
        a, b = layer.lora_A[OLD], layer.lora_B[OLD]
        a.weight = nn.Parameter(torch.cat([old[name].a, own[name].a], 0))
        b.weight = nn.Parameter(torch.cat([old[name].b, own[name].b], 1))
        a.out_features = b.in_features = layer.r[OLD] = joined.r
        layer.lora_alpha[OLD] = joined.lora_alpha
        layer.scaling[OLD] = joined.lora_alpha / joined.r
    peft.delete_adapter(NEW)
    peft.set_adapter(OLD)


def _peft(model: nn.Module) -> PeftModel:
    network = model.backbone if isinstance(model, Classifier) else model
    assert isinstance(network, PeftModel)
    return network


def _settings(model: nn.Module, adapter: str = OLD) -> Any:
    return _peft(model).peft_config[adapter]
