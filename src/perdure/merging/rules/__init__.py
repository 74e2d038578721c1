"""The rules of merging. Each is a file, and is found by its name."""

import importlib
import inspect
import pkgutil
from typing import Any

from perdure.config import checked
from perdure.errors import PerdureError, nearest
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


def names() -> list[str]:
    """The names of the rules."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> type[Rule]:
    """The class of the rule with this name.

    Raises:
        PerdureError: there is no such rule; the message has the nearest name.
    """
    if name not in names():
        raise PerdureError(f"unknown rule {name!r}; {_hint(name, names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, Rule)]
    return next(c for c in classes if c.__module__ == module.__name__)


def keywords(name: str) -> dict[str, inspect.Parameter]:
    """The keywords of a rule, with their types and defaults; `exact`, which all have, is last."""
    parameters = dict(inspect.signature(find(name)).parameters)
    exact = parameters.pop("exact")
    return {**parameters, "exact": exact}


def make(name: str, values: dict[str, Any] | None = None) -> Rule:
    """Make a rule.

    Raises:
        PerdureError: there is no such rule or keyword, or a value has the wrong type or range.
    """
    rule, valid, given = find(name), keywords(name), dict(values or {})
    for key, value in given.items():
        if key not in valid:
            if key in ("weights", "weight", "normalize"):
                hint = "weights of checkpoints are given with --weights"
            else:
                hint = _hint(key, valid)
            raise PerdureError(f"{name} has no keyword {key!r}; {hint}")
        given[key] = checked(key, value, valid[key].annotation, name)
    return rule(**given)


def _hint(word: str, valid: Any) -> str:
    other = OTHER_NAMES.get(word)
    return f"did you mean {other!r}?" if other in valid else nearest(word, valid)
