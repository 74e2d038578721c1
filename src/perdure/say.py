"""The function through which a verb reports its notes and warnings, one line each."""

from collections.abc import Callable


Say = Callable[[str], None]


def silent(line: str) -> None:
    """Ignore a line. This is the default of `say`."""
