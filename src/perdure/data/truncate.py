"""Truncating prompts that are too long: the middle is cut, not the instruction or the end."""

from itertools import groupby

from transformers import PreTrainedTokenizerBase


def cut_middle(lines: list[int], cut: int) -> slice:
    """Choose the run of `cut` consecutive tokens to leave out.

    It is the middle of the first of these spans that is long enough:

    1. the longest line between the first, where instruction and options stand, and the last, which
       asks for the answer;
    2. everything between the first and the last line;
    3. the longest line;
    4. the whole prompt.

    Args:
        lines: [tokens], the line on which each token stands, ascending.
        cut: how many tokens to leave out, at least 1 and at most all.
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
    first = start + (stop - start - cut + 1) // 2  # if the rest is odd, more of it stays before
    return slice(first, first + cut)


def token_lines(text: str, tokenizer: PreTrainedTokenizerBase, length: int) -> list[int]:
    """Return the line of `text` on which each of its `length` tokens stands, counted from 0.

    Special tokens do not count. A slow tokenizer does not know the tokens' offsets, so all of its
    tokens are on line 0.
    """
    if not tokenizer.is_fast:
        return [0] * length
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    lines, line, seen = [], 0, 0
    for start, stop in encoding["offset_mapping"]:  # pyright: ignore
        # A token may hold a word and the line break before it, and then stands on the new line. A
        # token that is only a line break stands on the line that it ends.
        piece = text[start:stop]
        at = start + len(piece) - len(piece.lstrip()) if piece.strip() else start
        line += text.count("\n", seen, at)
        seen = max(seen, at)
        lines.append(line)
    return lines


def _longest(spans: list[tuple[int, int]]) -> tuple[int, int]:
    return max(spans, key=lambda span: span[1] - span[0])
