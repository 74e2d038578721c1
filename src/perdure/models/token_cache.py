"""The tokens of a row, and a cache of them, so that each row is tokenized once."""

import json
from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple


AT_ONCE = 1000  # rows that are tokenized together; what a tokenizer makes of them takes much memory
IGNORED = -100  # the label of a position without loss, as everywhere in PyTorch


@dataclass
class Tokens:
    """The token ids of a row, with special tokens.

    Args:
        prompt: the ids that the model reads before the completion.
        completion: the ids that the model learns. For a causal row they begin with the first token
            that has a loss, and include the tokens between the turns that are learned.
        truncated: how many tokens of the row were cut.
        ignored: the indices in `completion` of the tokens without a loss.
        merged: whether a token spans the end of a causal prompt.
        parted: whether the prompt for the last answer differs from the text before this answer in
            the whole conversation.
    """

    prompt: list[int]
    completion: list[int]
    truncated: int = 0
    ignored: tuple[int, ...] = ()
    merged: bool = False
    parted: bool = False

    @property
    def learned(self) -> list[int]:
        """The ids of the completion that have a loss."""
        return [
            i for i, label in zip(self.completion, self.labels, strict=True) if label != IGNORED
        ]

    @property
    def labels(self) -> list[int]:
        """The labels of the completion: its ids, with -100 for the tokens without a loss."""
        labels = list(self.completion)
        for place in self.ignored:
            labels[place] = IGNORED
        return labels


class _Packed(NamedTuple):
    """`Tokens` with four bytes per token, because a run keeps the tokens of all its rows."""

    prompt: array
    completion: array
    truncated: int
    ignored: array
    merged: bool
    parted: bool


class TokenCache:
    """The tokens of rows, made by one tokenizer.

    The key of a row is its content, so the remembered rows of an earlier task are in the cache when
    they are read from its stage. The order of the keys inside a row's messages counts, because a
    chat template may write them in this order. The order of the row's own keys does not count.
    """

    def __init__(self):
        self._packed: dict[bytes, _Packed] = {}

    def tokens(
        self,
        rows: Sequence[Mapping[str, Any]],
        lines: Sequence[str],
        settings: Hashable,
        tokenize: Callable[[Sequence[Any], Sequence[str]], list[Tokens]],
    ) -> list[Tokens]:
        """Return the tokens of each row, and tokenize the rows that are not in the cache.

        Args:
            rows: any rows.
            lines: the beginning of an error line about each row.
            settings: all that the tokens depend on besides the row and the tokenizer.
            tokenize: returns the tokens of some of the rows, given these and their lines.
        """
        keys = [_key(row, settings) for row in rows]
        first: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            if key not in self._packed:
                first.setdefault(key, i)
        places = list(first.values())
        for start in range(0, len(places), AT_ONCE):
            part = places[start : start + AT_ONCE]
            new = tokenize([rows[i] for i in part], [lines[i] for i in part])
            for i, tokens in zip(part, new, strict=True):
                self._packed[keys[i]] = _Packed(
                    array("i", tokens.prompt),
                    array("i", tokens.completion),
                    tokens.truncated,
                    array("i", tokens.ignored),
                    tokens.merged,
                    tokens.parted,
                )
        return [_unpacked(self._packed[key]) for key in keys]


def _unpacked(packed: _Packed) -> Tokens:
    """Return the tokens in new lists, which the caller may change."""
    return Tokens(
        prompt=packed.prompt.tolist(),
        completion=packed.completion.tolist(),
        truncated=packed.truncated,
        ignored=tuple(packed.ignored),
        merged=packed.merged,
        parted=packed.parted,
    )


def _key(row: Mapping[str, Any], settings: Hashable) -> bytes:
    parts = [json.dumps(row[name], ensure_ascii=False) for name in sorted(row)]
    text = json.dumps([sorted(row), parts, repr(settings)], ensure_ascii=False)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
