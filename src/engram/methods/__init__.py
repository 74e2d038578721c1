"""The methods: a file each, or a folder with `method.py` in it, found by its name."""

import importlib
import inspect
import pkgutil
from typing import Any

from engram.config import checked
from engram.errors import EngramError, nearest
from engram.places import where_it_goes
from engram.train.method import Method


def names() -> list[str]:
    """The names a user can type."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "shared")


def find(name: str) -> type[Method]:
    """The method class in the file, or the folder, of that name.

    Raises:
        EngramError: no such method, with the nearest name.
    """
    if name not in names():
        raise EngramError(f"unknown method {name!r}; {where_it_goes(name, 'method', names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    if hasattr(module, "__path__"):  # a folder
        module = importlib.import_module(f"{module.__name__}.method")
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, Method)]
    return next(c for c in classes if c.__module__ == module.__name__)


def keywords(name: str) -> dict[str, inspect.Parameter]:
    """A method's keywords with their types and defaults: its configuration.

    What is keyword-only is no setting but an object that only Python can give.
    """
    found = inspect.signature(find(name)).parameters.items()
    return {key: parameter for key, parameter in found if parameter.kind != parameter.KEYWORD_ONLY}


def make(spec: Any) -> list[Method]:
    """Methods from what stands under `method:` in a YAML.

    A name; a mapping of names to keywords, `{replay: {ratio: 0.5}}`; or a list of both. The keyword
    `preset` takes a published set of keywords, the others are laid over it.

    Raises:
        EngramError: an unknown method, keyword or preset, or a value of the wrong type.
    """
    parts = spec if isinstance(spec, list) else [spec]
    methods = []
    for part in parts:
        if isinstance(part, str):
            part = {part: {}}
        if not isinstance(part, dict) or not part:
            raise EngramError(f"method: expected a name or {{name: keywords}}, got {part!r}")
        for name, given in part.items():
            if not isinstance(given, dict | None):
                raise EngramError(_no_mapping(name, given))
            methods.append(_one(str(name), dict(given or {})))
    if len({type(m) for m in methods}) < len(methods):
        raise EngramError("method: the same method is named twice; name it once")
    _check_shapes(methods)
    return methods


def _no_mapping(name: Any, given: Any) -> str:
    """What is wrong with `method: {NAME: VALUE}` where VALUE holds no keywords."""
    if name not in names():
        return f"unknown method {name!r}; {where_it_goes(str(name), 'method', names())}"
    return f"method: {name} takes {{keyword: value}}, got {given!r}; see `engram methods {name}`"


def _check_shapes(methods: list[Method]) -> None:
    """Where a method makes new weights for a task, the others must not look for the old ones."""
    shapers = [m.name for m in methods if m.reshapes]
    if len(shapers) > 1:
        raise EngramError(
            f"method: {' and '.join(shapers)} each change which weights there are; take one of them"
        )
    for method in methods if shapers else ():
        if method.follows:
            raise EngramError(
                f"method: {shapers[0]} makes new weights for each task, and {method.name} follows "
                f"the same ones from task to task; leave {method.name} out"
            )
    if shapers and not methods[0].reshapes:
        raise EngramError(
            f"method: {shapers[0]} makes the weights that the others see; name it first"
        )


def _one(name: str, given: dict[str, Any]) -> Method:
    method, valid = find(name), keywords(name)
    if (preset := given.pop("preset", None)) is not None:
        if preset not in method.presets:
            raise EngramError(
                f"{name}: unknown preset {preset!r}; {nearest(preset, method.presets)}"
            )
        given = {**method.presets[preset], **given}
    for key, value in given.items():
        if key not in valid:
            hint = where_it_goes(str(key), f"method.{name}", valid)
            raise EngramError(f"{name} has no keyword {key!r}; {hint}")
        given[key] = checked(key, value, valid[key].annotation, name)
    return method(**given)
