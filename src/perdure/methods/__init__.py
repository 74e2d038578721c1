"""The methods. Each is a file, or a folder with a `method.py`, and is found by its name."""

import importlib
import inspect
import pkgutil
from typing import Any

from perdure.config import checked
from perdure.errors import PerdureError, nearest
from perdure.places import where_it_goes
from perdure.train.method import Method


# Names under `method:` that are short for a preset of a method.
SHORT = {"kl_base": ("lwf", "kl_base")}
# What slao does to these methods, so that they cannot be in one list with it.
_MOST_CHANGED = "rotates every A before a task, which {} would take for changes of the task"
NOT_WITH_SLAO = {
    "hft": "changes every LoRA pair before and after a task, also those that {} freezes",
    "fpf": _MOST_CHANGED,
    "k_fpf": _MOST_CHANGED,
}


def names() -> list[str]:
    """The names that can be used under `method:` in the settings."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "shared")


def find(name: str) -> type[Method]:
    """The class of the method with this name.

    Raises:
        PerdureError: there is no such method; the message has the nearest name.
    """
    name = SHORT.get(name, (name,))[0]
    if name not in names():
        raise PerdureError(f"unknown method {name!r}; {_what_to_write(name)}")
    module = importlib.import_module(f"{__name__}.{name}")
    if hasattr(module, "__path__"):  # a folder
        module = importlib.import_module(f"{module.__name__}.method")
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, Method)]
    return next(c for c in classes if c.__module__ == module.__name__)


def names_in(spec: Any) -> set[str]:
    """The names of the methods in a setting `method:`, with the whole names of short ones."""
    parts = spec if isinstance(spec, list) else [spec]
    written = {name for part in parts for name in (part if isinstance(part, dict) else [part])}
    return {SHORT.get(name, (name,))[0] for name in written}


def _what_to_write(name: str) -> str:
    """The end of the error line about an unknown method.

    A record is named after a method and its preset, `recurrent_kif_lasting`, which is not a name
    that the settings know.
    """
    for known in names():
        preset = name.removeprefix(f"{known}_")
        if preset != name and preset in find(known).presets:
            return f"write '{{{known}: {{preset: {preset}}}}}'"
    return where_it_goes(name, "method", [*names(), *SHORT])


def keywords(name: str) -> dict[str, inspect.Parameter]:
    """The settings of a method: its constructor's keywords, with their types and defaults.

    A keyword-only parameter is not a setting: it takes an object that only Python can pass.
    """
    parameters = inspect.signature(find(name)).parameters
    return {key: p for key, p in parameters.items() if p.kind != p.KEYWORD_ONLY}


def make(spec: Any) -> list[Method]:
    """Create the methods of `method:` in the settings.

    Args:
        spec: a name; a mapping of names to keywords, `{replay: {ratio: 0.5}}`; or a list of both.
            The keyword `preset` names a published set of keywords; the other keywords override it.
            A name of `SHORT` stands for a preset.

    Raises:
        PerdureError: a method, keyword or preset is unknown, or a value has the wrong type.
    """
    parts = spec if isinstance(spec, list) else [spec]
    methods = []
    for part in parts:
        if isinstance(part, str):
            part = {part: {}}
        if not isinstance(part, dict) or not part:
            raise PerdureError(f"method: expected a name or {{name: keywords}}, got {part!r}")
        for name, settings in part.items():
            if not isinstance(settings, dict | None):
                raise PerdureError(_not_keywords(name, settings))
            methods.append(_make_one(str(name), dict(settings or {})))
    labels: dict[type[Method], str] = {}
    for method in methods:
        if (first := labels.setdefault(type(method), method.label)) != method.label:
            raise PerdureError(f"method: {first} and {method.label} are the same one; name it once")
    if len(labels) < len(methods):
        raise PerdureError("method: the same method is named twice; name it once")
    _check_shapes(methods)
    _check_pairs(methods)
    return methods


def _not_keywords(name: Any, value: Any) -> str:
    """The error message for `method: {NAME: VALUE}` where VALUE is not a mapping of keywords."""
    if name not in (*names(), *SHORT):
        return f"unknown method {name!r}; {_what_to_write(str(name))}"
    return f"method: {name} takes {{keyword: value}}, got {value!r}; see `perdure methods {name}`"


def _check_shapes(methods: list[Method]) -> None:
    """Refuse lists in which one method replaces weights that another one needs."""
    reshaping = [m.label for m in methods if m.reshapes]
    if len(reshaping) > 1:
        raise PerdureError(
            f"method: {' and '.join(reshaping)} each change which weights the model has; use only "
            "one of them"
        )
    for method in methods if reshaping else ():
        if method.follows:
            raise PerdureError(
                f"method: {reshaping[0]} makes new weights for each task, but {method.label} "
                f"needs the same ones in every task; leave {method.label} out"
            )
    if reshaping and not methods[0].reshapes:
        raise PerdureError(
            f"method: {reshaping[0]} makes the weights that the other methods use; name it first"
        )


def _check_pairs(methods: list[Method]) -> None:
    """Refuse lists in which what one method does defeats another one."""
    by_name = {method.name: method for method in methods}
    for name, reason in NOT_WITH_SLAO.items() if "slao" in by_name else ():
        if name in by_name:
            raise PerdureError(f"method: slao {reason.format(name)}; leave one of the two out")
    if "inflora" in by_name and getattr(by_name.get("recurrent_kif"), "unit", None) == "row":
        raise PerdureError(
            "method: recurrent_kif with unit: row fuses the rows of B A, but inflora trains no A; "
            "leave unit out"
        )


def _make_one(written: str, settings: dict[str, Any]) -> Method:
    """Create a method; errors have the name that the user wrote, which may be a short one."""
    method, valid = find(written), keywords(written)
    name = written
    if written in SHORT:
        name, preset = SHORT[written]
        settings = {"preset": preset, **settings}
    if (preset := settings.pop("preset", None)) is not None:
        if not method.presets:
            raise PerdureError(f"{written}: has no presets, so leave out preset={preset!r}")
        if preset not in method.presets:
            raise PerdureError(
                f"{written}: unknown preset {preset!r}; {nearest(preset, method.presets)}"
            )
        settings = {**method.presets[preset], **settings}
    for key, value in settings.items():
        if key not in valid:
            hint = where_it_goes(str(key), f"method.{name}", valid)
            raise PerdureError(f"{written} has no keyword {key!r}; {hint}")
        settings[key] = checked(key, value, valid[key].annotation, written)
    try:
        made = method(**settings)
    except PerdureError as error:
        raise PerdureError(written + str(error).removeprefix(name)) from None
    made.called = written
    return made
