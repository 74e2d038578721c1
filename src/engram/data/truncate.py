"""Which tokens of a prompt go when it is too long: its middle, never its instruction or its end."""

from itertools import groupby

from transformers import PreTrainedTokenizerBase


def cut_middle(lines: list[int], cut: int) -> slice:
    """The run of `cut` tokens to leave out.

    The run is the middle of the first of these that is long enough:

    1. the longest line between the first, where instruction and options stand, and the last, which
       asks for the answer;
    2. everything between the first and the last line;
    3. the longest line;
    4. the whole.

    Args:
        lines: the line each token stands on, ascending; [tokens].
        cut: how many tokens to leave out, at most all.
    """
    assert 0 < cut <= len(lines)
    spans: list[tuple[int, int]] = []
    for _, line in groupby(lines):
        start = spans[-1][1] if spans else 0
        spans.append((start, start + len(list(line))))
    inner = spans[1:-1]
    choices = [_longest(inner), (inner[0][0], inner[-1][1])] if inner else []
    choices += [_longest(spans), (0, len(lines))]
    start, stop = next((a, b) for a, b in choices if b - a >= cut)
    first = start + (stop - start - cut + 1) // 2  # of an odd rest, the larger half stands before
    return slice(first, first + cut)


def token_lines(text: str, tokenizer: PreTrainedTokenizerBase, length: int) -> list[int]:
    """The line of `text` on which each of its `length` tokens stands, special tokens left out.

    All on one line if the tokenizer, being a slow one, cannot tell.
    """
    if not tokenizer.is_fast:
        return [0] * length
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    lines, line, seen = [], 0, 0
    for start, stop in encoding["offset_mapping"]:  # pyright: ignore
        # A word's token may hold the line break before it, and then stands on the new line; the
        # token of a break alone stands on the line that it ends.
        piece = text[start:stop]
        at = start + len(piece) - len(piece.lstrip()) if piece.strip() else start
        line += text.count("\n", seen, at)
        seen = max(seen, at)
        lines.append(line)
    return lines


def _longest(spans: list[tuple[int, int]]) -> tuple[int, int]:
    return max(spans, key=lambda span: span[1] - span[0])
