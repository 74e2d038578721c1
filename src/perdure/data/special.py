"""The special tokens around a text: added where they are missing, and never twice."""

import string
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

from perdure.errors import PerdureError


def ids_of(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokenize texts without the special tokens that the tokenizer would put around them."""
    if not texts:
        return []
    encoded: Any = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    return encoded["input_ids"]


def text_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, special: bool = True) -> str:
    """Decode tokens, with the special ones or without.

    The text keeps its spaces. Many tokenizers would otherwise remove those of "a ." and "do n't".
    """
    text = tokenizer.decode(
        list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
    )
    return str(text)


def check_tokens(
    texts: Sequence[str], ids: Sequence[Sequence[int]], lines: Sequence[str], part: str
) -> None:
    """Check that each text that is not blank has at least one token.

    Args:
        texts: the texts.
        ids: the token ids of each text.
        lines: the beginning of each text's error line.
        part: what the texts are, such as "the prompt".

    Raises:
        PerdureError: a text has no token; the line shows the text.
    """
    for text, text_ids, line in zip(texts, ids, lines, strict=True):
        if text.strip() and not text_ids:
            shown = text if len(text) <= 60 else text[:60] + "..."
            raise PerdureError(
                f"{line}: the base's tokenizer makes no token of {part} {shown!r}; use the "
                "tokenizer that belongs to the base, or drop the row"
            )


def special_tokens(
    tokenizer: PreTrainedTokenizerBase, target: bool = False
) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and after every text.

    With `target`, those around a target of an encoder-decoder: the tokenizers of translation models
    put the token of the target's language there, and that of the source's around other texts.
    """
    text = _text_with_tokens(tokenizer)
    bare = ids_of([text], tokenizer)[0]
    texts: dict[str, Any] = {"text_target" if target else "text": [text]}
    encoded: Any = tokenizer(**texts, verbose=False)
    whole = encoded["input_ids"][0]
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:at], whole[at + len(bare) :]


def _text_with_tokens(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a text of which the tokenizer makes tokens; some do not know every letter."""
    candidates = chain(string.ascii_letters, string.digits, _texts_of_tokens(tokenizer))
    return next(text for text in candidates if text.strip() and ids_of([text], tokenizer)[0])


def _texts_of_tokens(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    for token in tokenizer.get_vocab():  # slow, so only if no letter and no digit is known
        yield tokenizer.convert_tokens_to_string([token])


def missing_around(
    ids: Sequence[int], before: Sequence[int], after: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return those of the special tokens `before` and `after` that a text does not have already.

    With [CLS] before and [SEP] after, the ids of "[CLS] a" lack nothing before and [SEP] after.
    """
    ids, before, after = list(ids), list(before), list(after)
    # The most special tokens with which the text begins and ends already.
    at_start = next(n for n in range(len(before), -1, -1) if before[len(before) - n :] == ids[:n])
    at_end = next(n for n in range(len(after), -1, -1) if after[:n] == ids[len(ids) - n :])
    return before[: len(before) - at_start], after[at_end:]


def end_token(tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    """Return the end token as text and as id.

    Raises:
        PerdureError: the tokenizer has none.
    """
    if tokenizer.eos_token is None or tokenizer.eos_token_id is None:
        raise PerdureError("the tokenizer has no end token; set tokenizer.eos_token")
    return str(tokenizer.eos_token), int(tokenizer.eos_token_id)  # type: ignore[arg-type]
