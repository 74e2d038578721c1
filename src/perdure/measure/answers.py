"""Extracting the answer from generated tokens, without the chat template's own text.

A model learns to write a turn as the template does: an empty block of reasoning or a channel's name
may come before the content, and a token that ends the turn after it. Only the content is the
answer. Text in these places that is not the template's is left unchanged.
"""

import re
from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from perdure.data.chat import Frame
from perdure.data.special import ids_of, text_of


def stop_tokens(frames: Collection[Frame], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the added tokens with which the template ends an answer."""
    vocabulary: Any = tokenizer.get_added_vocab()  # type: ignore[operator]
    added, stops = set(vocabulary.values()), set()
    for frame in set(frames):
        before, close, after = ids_of([frame.before, frame.close or "", frame.after], tokenizer)
        ends = [token for token in after if token in added][:1]
        stops |= set(ends) - {*before, *close}
    return stops


def answer_text(
    ids: Sequence[int],
    frame: Frame | None,
    tokenizer: PreTrainedTokenizerBase,
    stops: set[int],
    kept: Collection[int] = (),
) -> str:
    """Return the content of a generated answer, as text without special tokens.

    The content begins after the end of the reasoning, if the template has reasoning and the model
    wrote some, and otherwise after the text with which the template begins an answer. It ends
    before the first of `stops`, and before the text that the template writes in front of that
    token.

    Args:
        ids: the generated tokens.
        frame: the template's text around the answer, or None for a prompt of plain text.
        tokenizer: the base's tokenizer.
        stops: the tokens that end an answer (`stop_tokens`).
        kept: special tokens that are part of the answer (`special_in`).
    """
    if frame is None:
        return _text(ids, tokenizer, kept)
    start = 0
    if frame.close and _begins(ids, frame.opening, tokenizer):
        start = _count_through(ids, frame.close, tokenizer, anywhere=True)
    start = start or _count_through(ids, frame.before, tokenizer, anywhere=False)
    ids = list(ids[start:])
    stop = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    text, after = _text(ids[:stop], tokenizer, kept), _text_after(frame, tokenizer, stops)
    return text.removesuffix(after).rstrip() if after else text


def without_reasoning(text: str, frame: Frame | None) -> str:
    """Return a correct answer without the reasoning that stands in it, as `answer_text` cuts it.

    A content such as `<think>two and two</think>four` holds both. It is unchanged if the template
    has no reasoning, if the content does not begin as the template begins reasoning, or if nothing
    comes after it.
    """
    if frame is None or not frame.close:
        return text
    opening, close = ("".join(part.split()) for part in (frame.opening, frame.close))
    if not "".join(text.split()).startswith(opening):
        return text
    end = re.search(r"\s*".join(map(re.escape, close)), text)
    return (text[end.end() :].strip() if end else "") or text


def special_in(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the special tokens inside correct answers, except those that surround any text."""
    around: set[Any] = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}  # type: ignore
    tokens = {token for ids in ids_of(texts, tokenizer) for token in ids}
    return (tokens & special_ids(tokenizer)) - around


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokenizer's special tokens."""
    added: Any = tokenizer.added_tokens_decoder
    return {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)


def _text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, kept: Collection[int]) -> str:
    if not kept:
        return text_of(ids, tokenizer, special=False).strip()
    dropped = special_ids(tokenizer) - set(kept)
    return text_of([i for i in ids if i not in dropped], tokenizer).strip()


def _text_after(frame: Frame, tokenizer: PreTrainedTokenizerBase, stops: set[int]) -> str:
    """Return the plain text that the template writes after an answer, up to the end token."""
    ids, ends = ids_of([frame.after], tokenizer)[0], special_ids(tokenizer) | stops
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return text_of(ids[:stop], tokenizer).strip()


def _begins(ids: Sequence[int], text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether `ids` begin with the template's text, ignoring white space."""
    return dense(tokenizer, ids).startswith(dense(tokenizer, ids_of([text], tokenizer)[0]))


def _count_through(
    ids: Sequence[int], text: str, tokenizer: PreTrainedTokenizerBase, anywhere: bool
) -> int:
    """Return how many tokens reach to the end of the template's text, or 0 if it is not there.

    The text must be at the start of `ids`, unless it may be `anywhere`. White space is ignored,
    because it may be part of the token before or after; special tokens are not.
    """
    wanted = dense(tokenizer, ids_of([text], tokenizer)[0])

    def is_in_first(count: int) -> bool:
        generated = dense(tokenizer, ids[:count])
        return wanted in generated if anywhere else generated.startswith(wanted)

    if not wanted or not is_in_first(len(ids)):
        return 0
    return bisect_left(range(len(ids) + 1), True, key=is_in_first)


def dense(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return tokens as text without white space; special tokens are included."""
    return "".join(text_of(ids, tokenizer).split())
