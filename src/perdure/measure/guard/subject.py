"""A model that the guard asks."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from perdure.models.base import Base


@dataclass
class Subject:
    """A model to measure.

    Two subjects may share a network, such as a stage and its base, which is the same network with
    the adapter disabled.

    Args:
        name: what it is called in texts, such as "the base".
        base: the network and its tokenizer.
        context: makes the context in which the network is this model.
    """

    name: str
    base: Base
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
