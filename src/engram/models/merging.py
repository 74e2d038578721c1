"""An adapter merged into the weights below it, tied weights included.

Where input embeddings and output head are one matrix, an adapter on either adds to that one alone:
while it is learned, W + dW stands in one place and W in the other. Merged into the shared matrix,
dW would stand in both, which is another model. So shared weights are separated before they are
merged, and shared again where they are still the same.
"""

import warnings
from typing import Any

import torch
from peft import PeftModel
from torch import nn


def merge(network: PeftModel) -> Any:
    """The network below the adapter, with W' = W + (what the adapter adds) in its weights.

    The adapter's model is used up. Raises what PEFT raises for an adapter that does not merge.
    """
    bare: Any = network.get_base_model()
    flags = {id(config): config.tie_word_embeddings for config in _tying(bare)}
    _separate(bare)
    with warnings.catch_warnings():  # PEFT warns of tied weights, which are taken care of here
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*no longer tied", category=UserWarning)
        merged: Any = network.merge_and_unload(safe_merge=True)
    # PEFT's mark that an adapter is on it would make transformers save or load one
    for mark in ("_hf_peft_config_loaded", "peft_config"):
        vars(merged).pop(mark, None)
    for config in _tying(merged):
        config.tie_word_embeddings = flags.get(id(config), config.tie_word_embeddings)
    _tie_again(merged)
    return merged


def _separate(model: nn.Module) -> None:
    """Give every place that holds a shared parameter a copy of its own."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in seen:
                copy = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                setattr(module, name, copy)
            seen.add(id(parameter))


def _tie_again(model: Any) -> None:
    """Share what is still the same; where something is not, say so in the config if it can.

    transformers ties two matrices as it loads a model, unless its config says otherwise or both are
    in the file and differ. So the file alone would do; the config says it for other loaders.
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
    """The configs of a model that say whether its embeddings are tied, each once."""
    configs = {id(c): c for c in (model.config, model.config.get_text_config())}
    return [c for c in configs.values() if hasattr(c, "tie_word_embeddings")]


def _may_be_untied(config: Any) -> bool:
    """Whether a config takes `tie_word_embeddings: false`, and takes it for nothing else.

    Encoder-decoders read more out of it: whether logits are scaled, which embeddings there are.
    """
    settings = config.to_dict()
    untied = type(config).from_dict({**settings, "tie_word_embeddings": False}).to_dict()
    changed = {key for key in settings.keys() | untied if settings.get(key) != untied.get(key)}
    return not config.is_encoder_decoder and changed == {"tie_word_embeddings"}
