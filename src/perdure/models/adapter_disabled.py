"""The base inside a model with an adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from perdure.models.classifier import without_head


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
