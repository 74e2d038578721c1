"""The errors that report a mistake of the user's, or a stage that the gate refused."""

import difflib
from collections.abc import Iterable


LOST = 3  # the exit status when something was lost, or a stage was refused
# The folder that an error names in place of a temporary copy of it, by the path of the copy.
SHOWN_AS: dict[str, str] = {}


class PerdureError(ValueError):
    """A mistake of the user's. Its one line says what is wrong, where, and how to fix it.

    The command line prints the line without a traceback and exits with status 2. Nothing on disk
    has changed when it is raised.
    """

    def __str__(self) -> str:
        line = super().__str__()
        for copy, folder in SHOWN_AS.items():
            line = line.replace(copy, folder)
        return line


class NotFiniteError(PerdureError):
    """A loss, a gradient, a weight or an output of a model is infinite or not a number.

    No stage is made of a training in which this happens.
    """


class RefusedError(PerdureError):
    """A stage lost more than the gate allows, and was not committed.

    Its one line gives the reason. The ledger has the stage's scores, and its files are kept aside.
    The command line exits with status 3.
    """


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return the end of an error line: the valid name closest to `word`, or all valid names."""
    valid = sorted(valid)
    is_negative = word.startswith("-") and word[1:].isdigit()  # -1 is not a misspelt 1
    close = [] if is_negative else difflib.get_close_matches(word, valid, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid)}"


def one_line(error: Exception) -> str:
    """Return the first sentence of a library's error message."""
    return " ".join(str(error).split()).split(". ")[0][:200]
