"""The special tokens around a text: once, whoever writes them."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from engram.errors import EngramError


def ids_of(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids without the special tokens that the tokenizer would put around the texts."""
    if not texts:
        return []
    made: Any = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    return made["input_ids"]


def check_tokens(
    texts: Sequence[str], ids: Sequence[Sequence[int]], lines: Sequence[str], part: str
) -> None:
    """Refuse a text of which the tokenizer makes no token at all, as if it were not there.

    Args:
        texts: as they are written.
        ids: of each text.
        lines: begin the error line of each text.
        part: what the texts are, such as "the prompt".

    Raises:
        EngramError: with the text.
    """
    for text, text_ids, line in zip(texts, ids, lines, strict=True):
        if text.strip() and not text_ids:
            shown = text if len(text) <= 60 else text[:60] + "..."
            raise EngramError(
                f"{line}: the base's tokenizer makes no token of {part} {shown!r}; take the "
                "tokenizer that belongs to the base, or drop the row"
            )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after every text."""
    bare = ids_of(["a"], tokenizer)[0]
    made: Any = tokenizer(["a"], verbose=False)
    whole = made["input_ids"][0]
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:at], whole[at + len(bare) :]


def missing_around(
    ids: Sequence[int], before: Sequence[int], after: Sequence[int]
) -> tuple[list[int], list[int]]:
    """What of the special tokens `before` and `after` a text does not have already.

    With [CLS] a [SEP], for the ids of "[CLS] a" nothing is missing before and [SEP] after.
    """
    ids, before, after = list(ids), list(before), list(after)
    begun = next(n for n in range(len(before), -1, -1) if before[len(before) - n :] == ids[:n])
    ended = next(n for n in range(len(after), -1, -1) if after[:n] == ids[len(ids) - n :])
    return before[: len(before) - begun], after[ended:]


def end_token(tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    """The end token, as text and as id.

    Raises:
        EngramError: there is none.
    """
    if tokenizer.eos_token is None or tokenizer.eos_token_id is None:
        raise EngramError("the tokenizer has no end token; set tokenizer.eos_token")
    return str(tokenizer.eos_token), int(tokenizer.eos_token_id)  # type: ignore[arg-type]
