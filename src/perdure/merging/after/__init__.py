"""The treatments of a merged task vector. Each is a file, and is found by its name."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from perdure.errors import PerdureError
from perdure.merging.registry import Registry
from perdure.merging.treatment import Treatment


# What other tools call a treatment or a keyword: for error lines.
OTHER_NAMES = {
    "layer_scaling": "lines",
    "linear_scaling": "lines",
    "intruders": "intruder",
    "reduce_intruder_dimension": "intruder",
    "lambda": "remaining",
    "lambda_": "remaining",
    "mitigation_lambda": "remaining",
    "threshold_epsilon": "threshold",
    "epsilon": "threshold",
    "k": "top_k",
}
REGISTRY = Registry(__name__, __path__, Treatment, "treatment", OTHER_NAMES)


def names() -> list[str]:
    """The names of the treatments."""
    return REGISTRY.names()


def find(name: str) -> type[Treatment]:
    """The class of the treatment with this name.

    Raises:
        PerdureError: there is no such treatment; the message has the nearest name.
    """
    return REGISTRY.find(name)


def keywords(name: str) -> dict[str, inspect.Parameter]:
    """The keywords of a treatment, with their types and defaults."""
    return REGISTRY.keywords(name)


def make(after: Sequence[str] | Mapping[str, Mapping[str, Any]] | None) -> tuple[Treatment, ...]:
    """Make treatments, in the order in which they are applied.

    Args:
        after: their names, or their keywords by their names.

    Raises:
        PerdureError: there is no such treatment or keyword, a value has the wrong type or range, or
            a treatment is given twice.
    """
    given = [after] if isinstance(after, str) else list(after or ())
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None:
        raise PerdureError(f"after: {twice} is given twice; a treatment is applied once")
    values = after if isinstance(after, Mapping) else {}
    return tuple(REGISTRY.make(name, values.get(name) or {}) for name in given)
