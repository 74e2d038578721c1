"""`methods` describes the methods that the setting `method:` accepts."""

import inspect
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from perdure.errors import PerdureError
from perdure.methods import SHORT, find, keywords, names
from perdure.reporting import choosing
from perdure.reporting.measured import measured


def methods(name: str | None) -> list[dict[str, Any]]:
    """Describe all methods, or only the one of this name. See `perdure.api.methods`."""
    return [describe(method_name) for method_name in ([name] if name else names())]


def recommended(name: str | None) -> list[dict[str, Any]]:
    """Return what to take for which model and data.

    Raises:
        PerdureError: a method is named as well.
    """
    if name is not None:
        raise PerdureError(f"methods: --recommend compares all methods; leave out {name}")
    return choosing.recommended()


def describe(name: str) -> dict[str, Any]:
    """Return a method's family, summary, paper, keywords and measured numbers.

    Raises:
        PerdureError: there is no method of that name.
    """
    method = find(name)
    name = SHORT.get(name, (name,))[0]
    return {
        "name": name,
        "family": method.family,
        "summary": summary(method),
        "paper": method.paper,
        "keywords": spelled(keywords(name)),
        "presets": list(method.presets),
        "measured": measured(name),
    }


def summary(described: Any) -> str:
    """Return the first paragraph of a docstring as one line."""
    return (inspect.getdoc(described) or "").partition("\n\n")[0].replace("\n", " ")


def spelled(parameters: Mapping[str, inspect.Parameter]) -> list[dict[str, Any]]:
    """Return the name, the type in words and the default of each keyword."""
    return [
        {"name": key, "type": spell(parameter.annotation), "default": parameter.default}
        for key, parameter in parameters.items()
    ]


def spell(kind: Any) -> str:
    """Return a keyword's type in the words of a YAML: `float | null`, or the possible values."""
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) in (types.UnionType, Union):
        return " | ".join(map(spell, get_args(kind)))
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind))
