"""Text that a terminal, a page or a log can show without obeying it.

Names, rows and answers may be a stranger's. An escape character in them could rewrite what stands
on the screen, and a direction override could show text in another order than it has.
"""

import re


_LINES = "\t\n"
# The control characters C0 and C1, the separators of lines and paragraphs, the characters that
# embed, override and isolate directions, and halves of characters, which cannot be encoded.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, lines: bool = True) -> str:
    r"""Return a text with what a terminal obeys written as `\x1b` and `\u202e`.

    Args:
        text: any text.
        lines: whether the text may have several lines, so that tabs and line feeds stay.
    """
    return _OBEYED.sub(lambda match: _escaped(match[0], lines), text)


def printable_json(text: str) -> str:
    r"""Return JSON with what a terminal obeys written as `\u202e`, which means the same in JSON."""
    return _OBEYED.sub(
        lambda match: match[0] if match[0] in _LINES else f"\\u{ord(match[0]):04x}", text
    )


def _escaped(character: str, lines: bool) -> str:
    if lines and character in _LINES:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
