"""Which of the many values of a test run for every change, and which in `make test-slow`."""

from collections.abc import Iterable
from typing import Any

import pytest


def at_least(kept: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """Return all `values` as parameters; those that are not among `kept` are slow.

    A value may be a tuple of several arguments.
    """
    kept = list(kept)
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=() if value in kept else pytest.mark.slow,
        )
        for value in values
    ]
