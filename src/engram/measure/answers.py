"""An answer out of the tokens that a model wrote: what its chat template writes is no part of it.

A model learns to write a turn as the template does, with an empty think block before the content or
a channel's name, and with what ends the turn. Of that the answer is the content. Text that stands
where the template's would is left alone if it is another.
"""

from bisect import bisect_left
from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from engram.data.chat import Frame
from engram.data.special import ids_of


def stop_tokens(frames: Collection[Frame], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens with which the template ends an answer, beside those that end any text."""
    added, stops = set(tokenizer.get_added_vocab().values()), set()
    for frame in set(frames):
        before, close, after = ids_of([frame.before, frame.close or "", frame.after], tokenizer)
        ends = [token for token in after if token in added][:1]
        stops |= set(ends) - {*before, *close}
    return stops


def spoken(
    ids: Sequence[int], frame: Frame | None, tokenizer: PreTrainedTokenizerBase, stops: set[int]
) -> str:
    """The content of what was written, as text without special tokens.

    What stands behind the end of the thoughts, where the template knows of thoughts, else behind
    the text that the template begins an answer with; up to the first of `stops`.

    Args:
        ids: what the model wrote.
        frame: the template's text around the answer; None for a prompt of text.
        tokenizer: the base's own.
        stops: `stop_tokens`.
    """
    if frame is not None:
        start = _behind(ids, frame.close or "", tokenizer, anywhere=True)
        start = start or _behind(ids, frame.before, tokenizer, anywhere=False)
        ids = list(ids[start:])
        stop = next((place for place, token in enumerate(ids) if token in stops), len(ids))
        ids = ids[:stop]
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
    after = frame.after.strip() if frame else ""
    return text.removesuffix(after).rstrip() if after else text


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
