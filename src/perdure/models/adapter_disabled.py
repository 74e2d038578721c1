"""The base inside a model with an adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel

from perdure.models.classifier import without_head


# Ways to initialise a LoRA that leave the base's weights as they are.
HARMLESS = (True, False, "gaussian", "orthogonal", "eva")


def base_is_kept(model: PeftModel) -> bool:
    """Return whether a model is its untouched base while its adapter is disabled.

    It is not if the biases of the base were trained, which PEFT leaves as they are, or if the
    adapter's initialisation has changed the base's weights, as PiSSA and OLoRA do.
    """
    return all(
        getattr(config, "bias", "none") == "none"
        and getattr(config, "init_lora_weights", True) in HARMLESS
        for config in model.peft_config.values()
    )


@contextmanager
def adapter_disabled(model: Any) -> Iterator[None]:
    """Disable the adapter for a block, so that the model is the base.

    PEFT makes all of an adapter's parameters trainable when it enables the adapter again. Here the
    same parameters are trainable after the block as before it.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with without_head(model).disable_adapter():
            yield
    finally:
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
