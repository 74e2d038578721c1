"""LoRA adapters, one for each task, which are stored as one plain adapter.

    delta W = s sum_t B_t A_t = s [B_1 ... B_t] [A_1; ...; A_t],   s = lora_alpha / r

r and lora_alpha add up over the tasks, so s does not change. While a task is learned, its adapter
is called `new`; it is active together with `default`, which holds all earlier ones and is frozen.
After the task the two are joined to a new `default`. A method stores the rank of one task, to
create the next adapter with it.

The newest stage stores the whole joined adapter, so that PEFT can load it without the earlier
stages. Nothing of it is stored twice: the earlier adapters are its first rows of A and columns of
B, bit by bit, so their files are deleted and cut out of it when they are needed
(`lineage/contained.py`). Checkpoints inside a task hold only `new`.
"""

import copy
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from perdure.config import DEFAULT_ADAPTER, Config, filled_adapter
from perdure.errors import PerdureError
from perdure.methods.shared.lora import factors, layers
from perdure.models.classifier import without_head
from perdure.seeds import derive, forked


OLD, NEW = "default", "new"
# Settings of an adapter that allow its rank to grow.
ALLOWED = {
    *("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
}
UNSET = (None, False, "none", [], {})  # values that other settings may have
# Values of init_lora_weights that set B to 0 and do not change the base.
ALLOWED_INITS = (True, "gaussian")


def check(name: str, config: Config) -> None:
    """Refuse settings of an adapter that do not allow its rank to grow.

    Raises:
        PerdureError: with the setting to change.
    """
    for key, value in (config.adapter or {}).items():
        is_allowed = value in ALLOWED_INITS if key == "init_lora_weights" else value in UNSET
        if key not in ALLOWED and not is_allowed:
            raise PerdureError(
                f"{name}: joins LoRA adapters by rank, which adapter.{key}={value} does not allow; "
                "leave it out"
            )


def rank_of_task(config: Config) -> int:
    """The rank of the adapter of one task, which the settings of a lineage always are about."""
    return (filled_adapter(config.adapter) or DEFAULT_ADAPTER)["r"]


def rank(model: nn.Module) -> int:
    """The rank of `default`.

    Raises:
        PerdureError: the adapter has an embedding, whose factors have other shapes.
    """
    for name, layer in layers(model):
        if OLD not in layer.lora_A:
            raise PerdureError(
                f"adapter: {name} is not a linear layer, and only those can be joined by rank; "
                "leave it out of target_modules"
            )
    return _settings(model).r


def add(model: nn.Module, rank: int, seed: int) -> None:
    """Freeze `default` and add `new` with this rank: A is drawn with `seed`, B is zero."""
    peft, settings = _peft(model), copy.deepcopy(_settings(model))
    settings.lora_alpha = type(settings.lora_alpha)(settings.lora_alpha * rank / settings.r)
    settings.r, settings.inference_mode = rank, False
    with forked(derive(seed, "adapter")):
        peft.add_adapter(NEW, settings)
    peft.base_model.set_adapter([OLD, NEW])  # type: ignore[operator]  # trains both
    peft.set_requires_grad(OLD, requires_grad=False)


@torch.no_grad()
def join(model: nn.Module) -> None:
    """Join `new`, if there is one, to `default`; afterwards all of `default` is trainable."""
    peft = _peft(model)
    if NEW not in peft.peft_config:
        return
    joined, new = _settings(model), _settings(model, NEW)
    joined.r, joined.lora_alpha = joined.r + new.r, joined.lora_alpha + new.lora_alpha
    old_factors, new_factors = factors(model, OLD), factors(model, NEW)
    for name, layer in layers(model):
        a, b = layer.lora_A[OLD], layer.lora_B[OLD]
        a.weight = nn.Parameter(torch.cat([old_factors[name].a, new_factors[name].a], dim=0))
        b.weight = nn.Parameter(torch.cat([old_factors[name].b, new_factors[name].b], dim=1))
        a.out_features = b.in_features = layer.r[OLD] = joined.r
        layer.lora_alpha[OLD] = joined.lora_alpha
        layer.scaling[OLD] = joined.lora_alpha / joined.r
    peft.delete_adapter(NEW)
    peft.set_adapter(OLD)


def _peft(model: nn.Module) -> PeftModel:
    network = without_head(model)
    assert isinstance(network, PeftModel)
    return network


def _settings(model: nn.Module, adapter: str = OLD) -> Any:
    return _peft(model).peft_config[adapter]
