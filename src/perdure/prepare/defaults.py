"""The settings that `init` chooses for a language model where its user has chosen none."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from perdure.config import DEFAULT_TRAINING, GROUPED, Config
from perdure.models.base import BaseInfo
from perdure.models.targets import fits


# LoRA, on all linear layers where the family allows it, with a learning rate about ten times that
# for all weights.
ADAPTER = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
}
LORA_RATE, WHOLE_RATE = 2e-4, 2e-5
MEMORY_RATIO = 0.05
# Chosen by benchmarks/grids/smollm2_assistant_confirm.yaml and smollm2_superni_confirm.yaml.
METHOD = [{"recurrent_kif": {"preset": "lasting"}}, "kl_base"]


def choose_defaults(config: Config, chosen: Mapping[str, Any], info: BaseInfo) -> None:
    """Fill in the method, the adapter, the training and the memory of a new lineage, in place.

    Old rows are remembered. A generative model with an adapter learns them by Recurrent-KIF and
    is kept near its base (`kl_base`), and its rows are in batches with others of about their
    length; the other models rehearse them. The settings are complete, so that later releases do not
    change a lineage.

    Args:
        config: the settings.
        chosen: the settings that the user gave, as nested mappings.
        info: the base.
    """
    if "method" not in chosen and config.mode == "sequential":
        writes_with_adapter = info.kind != "encoder" and config.adapter is not None
        config.method = deepcopy(METHOD) if writes_with_adapter else "replay"
    if config.adapter is not None and config.adapter.get("peft_type", "LORA") == "LORA":
        config.adapter = {**ADAPTER, **config.adapter}
        if not any(key in config.adapter for key in ("target_modules", "target_parameters")):
            everywhere = {**config.adapter, "target_modules": "all-linear"}
            # Otherwise the layers are those that suit the family (`fitting_adapter`).
            config.adapter = (
                everywhere if fits(info.config, info.kind, everywhere) else config.adapter
            )
    rate = WHOLE_RATE if config.adapter is None else LORA_RATE
    defaults = {**DEFAULT_TRAINING, "learning_rate": rate}
    if info.kind != "encoder":
        defaults["train_sampling_strategy"] = GROUPED
    config.training = {**defaults, **config.training}
    if "ratio" not in (chosen.get("memory") or {}):
        config.memory.ratio = MEMORY_RATIO
