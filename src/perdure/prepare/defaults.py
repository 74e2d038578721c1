"""The settings that `init` chooses for a language model where its user has chosen none."""

from collections.abc import Mapping
from typing import Any

from perdure.config import DEFAULT_TRAINING, Config
from perdure.models.kinds import Kind


# LoRA on all linear layers, with a learning rate about ten times that for all weights.
ADAPTER = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": "all-linear",
}
LORA_RATE, WHOLE_RATE = 2e-4, 2e-5
MEMORY_RATIO = 0.05


def choose_defaults(config: Config, chosen: Mapping[str, Any], kind: Kind) -> None:
    """Fill in the method, the adapter, the training and the memory of a new lineage, in place.

    Old rows are rehearsed, and a model that writes is kept near its base (`kl_base`), which needs
    an adapter. The settings are complete, so that later releases do not change a lineage.

    Args:
        config: the settings.
        chosen: the settings that the user gave, as nested mappings.
        kind: the kind of the base.
    """
    if "method" not in chosen and config.mode == "sequential":
        writes_with_adapter = kind != "encoder" and config.adapter is not None
        config.method = ["replay", "kl_base"] if writes_with_adapter else "replay"
    is_lora = (config.adapter or {}).get("peft_type", "LORA") == "LORA"
    if config.adapter is not None and is_lora and "r" not in config.adapter:
        config.adapter = {**ADAPTER, **config.adapter}
    rate = WHOLE_RATE if config.adapter is None else LORA_RATE
    config.training = {**DEFAULT_TRAINING, "learning_rate": rate, **config.training}
    if "ratio" not in (chosen.get("memory") or {}):
        config.memory.ratio = MEMORY_RATIO
