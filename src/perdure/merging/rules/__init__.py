"""The rules of merging. Each is a file, and is found by its name."""

import inspect
from typing import Any

from perdure.errors import PerdureError
from perdure.merging.registry import Registry
from perdure.merging.rule import Rule


# What other tools call a rule or a keyword: for error lines.
OTHER_NAMES = {
    "linear": "average",
    "mean": "average",
    "soup": "average",
    "model_soup": "average",
    "swa": "average",
    "running_mean": "average",
    "ta": "task_arithmetic",
    "add": "task_arithmetic",
    "dare_linear": "dare",
    "drop": "dare",
    "nuslerp": "slerp",
    "max": "magmax",
    "stock": "model_stock",
    "magnitude_prune": "breadcrumbs",
    "lambda": "scale",
    "lambda_": "scale",
    "coefficient": "scale",
    "scaling_factor": "scale",
    "k": "density",
    "p": "density",
    "drop_rate": "density",
    "decay": "weight",
}
REGISTRY = Registry(__name__, __path__, Rule, "rule", OTHER_NAMES)


def names() -> list[str]:
    """The names of the rules."""
    return REGISTRY.names()


def find(name: str) -> type[Rule]:
    """The class of the rule with this name.

    Raises:
        PerdureError: there is no such rule; the message has the nearest name.
    """
    return REGISTRY.find(name)


def keywords(name: str) -> dict[str, inspect.Parameter]:
    """The keywords of a rule, with their types and defaults; `exact`, which all have, is last."""
    parameters = REGISTRY.keywords(name)
    exact = parameters.pop("exact")
    return {**parameters, "exact": exact}


def make(name: str, values: dict[str, Any] | None = None) -> Rule:
    """Make a rule.

    Raises:
        PerdureError: there is no such rule or keyword, or a value has the wrong type or range.
    """
    valid = keywords(name)
    for key in values or {}:
        if key not in valid and key in ("weights", "weight", "normalize"):
            raise PerdureError(
                f"{name} has no keyword {key!r}; weights of checkpoints are given with --weights"
            )
    return REGISTRY.make(name, values or {})
