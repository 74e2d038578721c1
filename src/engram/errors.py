"""The one kind of error a user is meant to see."""

import difflib
from collections.abc import Iterable


class EngramError(ValueError):
    """A mistake of the user's, told in one line: what, where, and how to mend it.

    The command line prints it without a traceback and exits with status 2; nothing on disk has
    changed when it is raised.
    """


def nearest(word: str, valid: Iterable[str]) -> str:
    """The end of an error line: the valid name closest to `word`, else all valid names."""
    valid = sorted(valid)
    close = difflib.get_close_matches(word, valid, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid)}"
