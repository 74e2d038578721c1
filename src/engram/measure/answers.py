"""An answer out of the tokens that a model wrote: what its chat template writes is no part of it.

A model learns to write a turn as the template does, with an empty think block before the content or
a channel's name, and with what ends the turn. Of that the answer is the content. Text that stands
where the template's would is left alone if it is another.
"""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from engram.data.chat import Frame
from engram.data.special import ids_of


def stop_tokens(frames: Collection[Frame], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens with which the template ends an answer, beside those that end any text."""
    vocabulary: Any = tokenizer.get_added_vocab()  # type: ignore[operator]
    added, stops = set(vocabulary.values()), set()
    for frame in set(frames):
        before, close, after = ids_of([frame.before, frame.close or "", frame.after], tokenizer)
        ends = [token for token in after if token in added][:1]
        stops |= set(ends) - {*before, *close}
    return stops


def spoken(
    ids: Sequence[int],
    frame: Frame | None,
    tokenizer: PreTrainedTokenizerBase,
    stops: set[int],
    kept: Collection[int] = (),
) -> str:
    """The content of what was written, as text without special tokens.

    What stands behind the end of the thoughts, where the template knows of thoughts and the model
    began with some, else behind the text that the template begins an answer with; up to the first
    of `stops`, and without the text that the template writes before it.

    Args:
        ids: what the model wrote.
        frame: the template's text around the answer; None for a prompt of text.
        tokenizer: the base's own.
        stops: `stop_tokens`.
        kept: special tokens that are a part of the answer (`special_in`).
    """
    if frame is None:
        return _text(ids, tokenizer, kept)
    start = 0
    if frame.close and _begins(ids, frame.opening, tokenizer):
        start = _behind(ids, frame.close, tokenizer, anywhere=True)
    start = start or _behind(ids, frame.before, tokenizer, anywhere=False)
    ids = list(ids[start:])
    stop = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    text, after = _text(ids[:stop], tokenizer, kept), _text_after(frame, tokenizer, stops)
    return text.removesuffix(after).rstrip() if after else text


def special_in(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The special tokens that right answers are written with, but those around any text."""
    around: set[Any] = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}  # type: ignore
    written = {token for ids in ids_of(texts, tokenizer) for token in ids}
    return (written & _special(tokenizer)) - around


def _special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added: Any = tokenizer.added_tokens_decoder
    return {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)


def _text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, kept: Collection[int]) -> str:
    if not kept:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
    dropped = _special(tokenizer) - set(kept)
    return str(tokenizer.decode([i for i in ids if i not in dropped])).strip()


def _text_after(frame: Frame, tokenizer: PreTrainedTokenizerBase, stops: set[int]) -> str:
    """What the template writes behind an answer as plain text, up to a token that ends it."""
    ids, ends = ids_of([frame.after], tokenizer)[0], _special(tokenizer) | stops
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return str(tokenizer.decode(ids[:stop])).strip()


def _begins(ids: Sequence[int], text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `ids` begin with the template's text; white space does not count."""
    return dense(tokenizer, ids).startswith(dense(tokenizer, ids_of([text], tokenizer)[0]))


def _behind(
    ids: Sequence[int], text: str, tokenizer: PreTrainedTokenizerBase, anywhere: bool
) -> int:
    """How many tokens there are up to the end of the template's text; 0 if it does not stand there.

    Special tokens count and white space does not: it may be a part of the token before or behind.
    """
    wanted = dense(tokenizer, ids_of([text], tokenizer)[0])

    def stands(count: int) -> bool:
        written = dense(tokenizer, ids[:count])
        return wanted in written if anywhere else written.startswith(wanted)

    if not wanted or not stands(len(ids)):
        return 0
    return bisect_left(range(len(ids) + 1), True, key=stands)


def dense(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Tokens as text, special ones too, without white space."""
    return "".join(str(tokenizer.decode(list(ids))).split())
