"""Merging an adapter into the weights below it, including tied weights.

If the input embeddings and the output head share one matrix W, an adapter on one of them changes
only that one: the model computes with W + dW in one place and with W in the other. If dW were
merged into the shared matrix, it would be in both places, which is a different model. So shared
weights are separated before merging, and shared again if they are still equal.
"""

import warnings
from typing import Any

import torch
from peft import PeftModel
from torch import nn


def merge(network: PeftModel) -> Any:
    """Merge the adapter into the weights below it, W' = W + dW, and return the model without it.

    `network` must not be used afterwards.

    Raises:
        Exception: PEFT's own error for an adapter that cannot be merged.
    """
    bare: Any = network.get_base_model()
    flags = {id(config): config.tie_word_embeddings for config in _tying(bare)}
    _separate(bare)
    with warnings.catch_warnings():  # PEFT warns about tied weights, which are handled here
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*no longer tied", category=UserWarning)
        merged: Any = network.merge_and_unload(safe_merge=True)
    # With PEFT's marks of an adapter, transformers would try to save or load one.
    for mark in ("_hf_peft_config_loaded", "peft_config"):
        vars(merged).pop(mark, None)
    for config in _tying(merged):
        config.tie_word_embeddings = flags.get(id(config), config.tie_word_embeddings)
    _tie_again(merged)
    return merged


def _separate(model: nn.Module) -> None:
    """Give every module that holds a shared parameter its own copy."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in seen:
                copy = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                setattr(module, name, copy)
            seen.add(id(parameter))


def _tie_again(model: Any) -> None:
    """Share weights that are still equal; if some are not, say so in the config if possible.

    When transformers loads a model, it ties two matrices unless the config forbids it or the file
    has both and they differ. So the file alone would be enough, but other loaders need the config.
    """
    pairs = model.get_expanded_tied_weights_keys(all_submodels=True)  # {target: source}
    apart = [
        target
        for target, source in pairs.items()
        if not torch.equal(model.get_parameter(target), model.get_parameter(source))
    ]
    if apart and _may_be_untied(model.config):
        for config in _tying(model):
            config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
        return
    for target, source in pairs.items():
        if target not in apart:
            holder, _, name = target.rpartition(".")
            setattr(model.get_submodule(holder), name, model.get_parameter(source))
    model.all_tied_weights_keys = {k: v for k, v in pairs.items() if k not in apart}


def _tying(model: Any) -> list[Any]:
    """Return the configs of a model that say whether its embeddings are tied, each once."""
    configs = {id(c): c for c in (model.config, model.config.get_text_config())}
    return [c for c in configs.values() if hasattr(c, "tie_word_embeddings")]


def _may_be_untied(config: Any) -> bool:
    """Return whether `tie_word_embeddings: false` in a config changes nothing but the tying.

    In encoder-decoders it also decides whether logits are scaled and which embeddings exist.
    """
    settings = config.to_dict()
    untied = type(config).from_dict({**settings, "tie_word_embeddings": False}).to_dict()
    changed = {key for key in settings.keys() | untied if settings.get(key) != untied.get(key)}
    return not config.is_encoder_decoder and changed == {"tie_word_embeddings"}
