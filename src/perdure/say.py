"""How a verb tells its notes and warnings, one line each."""

from collections.abc import Callable


Say = Callable[[str], None]


def silent(line: str) -> None:
    """Tell nobody: what the verbs do with their lines unless a caller passes `say`."""
