"""Metrics of one's own: a function of a module, named `MODULE:FUNCTION`.

It is called with the answer and one reference, both text, and returns a number from 0 to 1. The
module is imported from the working directory or from anywhere that Python finds it.
"""

import hashlib
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from perdure.data.rows import Row, references
from perdure.errors import PerdureError, one_line


Metric = Callable[[str, str], float]
TRIED = 20  # how many rows a metric is tried on before anything is trained

_sources: dict[str, str] = {}  # the hash of each module's source when it was imported, by name


def is_custom(name: str) -> bool:
    """Return whether the name of a metric is that of a function, `MODULE:FUNCTION`."""
    return ":" in name


def metric_name(metric: str | Metric) -> str:
    """Return the name of a metric; for a function, `MODULE:FUNCTION`.

    Raises:
        PerdureError: the function cannot be imported again by this name.
    """
    if isinstance(metric, str):
        return metric
    module, function = (getattr(metric, key, "") for key in ("__module__", "__qualname__"))
    if module == "__main__" or not function.replace(".", "_").isidentifier():
        raise PerdureError(
            f"metric: {function or metric!r} cannot be imported by its name, so other commands "
            "could not score with it; define it with `def` in a module of its own, such as "
            "metrics.py"
        )
    return f"{module}:{function}"


def custom_metric(name: str) -> Metric:
    """Return the function `MODULE:FUNCTION` as a metric that checks its values.

    Raises:
        PerdureError: there is no such module or function, or the module cannot be imported. When it
            is called: the function fails, or its value is not a number from 0 to 1.
    """
    module_name, _, path = name.partition(":")
    function: Any = _module(name, module_name)
    for part in path.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise PerdureError(
            f"metric {name!r}: module {module_name} has no function {path!r}; write MODULE:FUNCTION"
        )

    def metric(prediction: str, reference: str) -> float:
        try:
            value: Any = function(prediction, reference)
            number = float(value)
        except Exception as error:
            raise PerdureError(
                f"metric {name!r}: failed on the answer {_short(prediction)} with "
                f"{type(error).__name__}: {one_line(error)}; it must return a number from 0 to 1"
            ) from error
        if math.isnan(number) or not 0 <= number <= 1:
            raise PerdureError(
                f"metric {name!r}: returned {value!r} for the answer {_short(prediction)}; it must "
                "return a number from 0 to 1"
            )
        return number

    return metric


def metric_source(name: str) -> str:
    """Return the SHA-256 of the source file of a custom metric's module.

    Raises:
        PerdureError: as `custom_metric`, or the module has no source file.
    """
    module_name = name.partition(":")[0]
    _module(name, module_name)
    return _sources[module_name]


def check_deterministic(name: str, rows: Sequence[Row]) -> None:
    """Try a custom metric on test rows, with right, wrong and empty answers, each twice.

    Raises:
        PerdureError: two values for the same texts differ, or as `custom_metric`.
    """
    metric = custom_metric(name)
    right = [references(row)[0] for row in rows[:TRIED]]
    pairs = [
        (prediction, reference)
        for reference, other in zip(right, [*right[1:], *right[:1]], strict=True)
        for prediction in (reference, other, "")
    ]
    first, second = ([metric(*pair) for pair in pairs] for _ in range(2))
    for (prediction, _), one, other in zip(pairs, first, second, strict=True):
        if one != other:
            raise PerdureError(
                f"metric {name!r}: gave {one:g} and then {other:g} for the same answer "
                f"{_short(prediction)}; it may depend on nothing but the two texts"
            )


def _module(name: str, module_name: str) -> ModuleType:
    """Import the module of a metric, again if its source has changed since."""
    here = str(Path.cwd())
    if here not in sys.path:  # a console script does not have it
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # anything may fail in a user's module
        missing = isinstance(error, ModuleNotFoundError) and error.name == module_name
        reason = "there is no such module" if missing else f"{type(error).__name__}: {error}"
        raise PerdureError(
            f"metric {name!r}: module {module_name!r} cannot be imported from {here} or Python's "
            f"path: {' '.join(reason.split())}"
        ) from error
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py") or not Path(file).is_file():
        raise PerdureError(
            f"metric {name!r}: module {module_name!r} has no source file, whose hash a lineage "
            "records; define the function in a .py file"
        )
    source = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    if _sources.get(module_name, source) != source:
        importlib.invalidate_caches()
        module = importlib.reload(module)
    _sources[module_name] = source
    return module


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
