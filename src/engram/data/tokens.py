"""Rows to tokens: what is shown, what is learned, and what is cut when a row is too long.

    causal    <bos> prompt | completion <eos>     one sequence, loss right of the bar
    seq2seq   prompt <eos> -> completion <eos>    loss on the target
    encoder   [CLS] prompt [SEP] -> label         loss on the label

For a causal model, ids and labels are those that TRL's `SFTTrainer` makes: prompt and completion
are joined as they are, without a space that nobody wrote, and what is learned begins where the ids
of both part from those of the prompt alone. Messages go through the tokenizer's chat template, and
the assistant's turns are learned. A `{"text"}` row is learned whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from engram.data.causal import CausalRow, causal_prompts, causal_rows, shorten
from engram.data.chat import is_chat
from engram.data.rows import Row, answer
from engram.data.special import check_tokens, end_token, ids_of, missing_around, special_tokens
from engram.data.text import completion_text, prompt_text, row_texts
from engram.data.truncate import cut_middle, token_lines
from engram.errors import EngramError, nearest


__all__ = [
    "IGNORED",
    "Collator",
    "Kind",
    "Tokens",
    "answer",
    "check_known",
    "completion_text",
    "encode",
    "features",
    "prompt_text",
    "prompts",
]

Kind = Literal["causal", "seq2seq", "encoder"]
IGNORED = -100  # the label of a position without loss, as everywhere in PyTorch
STAND_IN = 2  # tokens that a causal prompt leaves to its answer: one, and the end token


@dataclass
class Tokens:
    """Token ids of a row, special tokens included; `truncated` tokens of it were cut.

    A causal row's `completion` begins with the first token that is learned, and holds those between
    its turns too; `ignored` are the places in it without a loss.
    """

    prompt: list[int]
    completion: list[int]
    truncated: int = 0
    ignored: tuple[int, ...] = ()

    @property
    def labels(self) -> list[int]:
        """The completion's labels."""
        labels = list(self.completion)
        for place in self.ignored:
            labels[place] = IGNORED
        return labels


def encode(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    max_length: int,
    max_completion_length: int,
    mask_history: bool = False,
) -> Tokens:
    """Tokens of one row, as `features` makes them; an encoder's completion is empty."""
    lengths = (max_length, max_completion_length)
    return _encode([row], tokenizer, kind, lengths, "the row", mask_history)[0]


def features(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    max_length: int,
    max_completion_length: int,
    labels: Sequence[str] | None,
    where: str,
    mask_history: bool = False,
) -> tuple[list[dict[str, Any]], int]:
    """What the collator takes, and the number of rows that were cut.

    Args:
        rows: checked rows.
        tokenizer: the base's own.
        kind: the family of the base.
        max_length: tokens of the prompt, for causal models of prompt and completion together;
            special tokens count.
        max_completion_length: tokens of the completion with its end token; of several turns, of the
            last one.
        labels: the answers an encoder can give, in the order of its head; else None.
        where: what the rows are, such as "agnews train"; it begins each error line.
        mask_history: whether only the last of the assistant's turns is learned.

    Raises:
        EngramError: a completion is too long or leaves no room for its prompt, a row has no prompt
            where the model needs one, or an encoder's answer is not among the labels.
    """
    lengths = (max_length, max_completion_length)
    encoded = _encode(rows, tokenizer, kind, lengths, where, mask_history)
    truncated = sum(tokens.truncated > 0 for tokens in encoded)
    if kind == "encoder":
        indices = _label_indices(rows, labels or (), where)
        made = [
            {"input_ids": tokens.prompt, "labels": index}
            for tokens, index in zip(encoded, indices, strict=True)
        ]
    elif kind == "seq2seq":
        made = [{"input_ids": row.prompt, "labels": row.completion} for row in encoded]
    else:
        made = [
            {
                "input_ids": row.prompt + row.completion,
                "labels": [IGNORED] * len(row.prompt) + row.labels,
            }
            for row in encoded
        ]
    return made, truncated


def check_known(
    ids: Sequence[int], tokens: int | None, tokenizer: PreTrainedTokenizerBase, where: str
) -> None:
    """That all ids are among the `tokens` that the base has embeddings for (None: no end).

    Raises:
        EngramError: with the token, and how the base is mended.
    """
    largest = max(ids, default=0)
    if tokens is None or largest < tokens:
        return
    raise EngramError(
        f"{where}: the token {tokenizer.convert_ids_to_tokens(largest)!r} has the id {largest}, "
        f"and the base has {tokens} embeddings; take the tokenizer that belongs to it, or give it "
        "more with model.resize_token_embeddings(len(tokenizer)) and save it"
    )


def prompts(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    max_length: int,
    where: str,
) -> tuple[list[list[int]], int]:
    """The ids with which a model is asked each row, and how many were cut; answers play no part.

    Of several turns the last is asked for. A causal prompt leaves room for an answer of one token.

    Raises:
        EngramError: a row has no prompt, or `max_length` leaves no room for it.
    """
    lines = _lines(rows, where)
    if kind == "causal":
        asked = causal_prompts(rows, tokenizer, lines)
        room = max_length - STAND_IN
        encoded = [
            _cut(row, room, max_length, tokenizer, line)
            for row, line in zip(asked, lines, strict=True)
        ]
        return [row.ids for row in encoded], sum(row.cut > 0 for row in encoded)
    texts = [prompt_text(row, tokenizer, line) for row, line in zip(rows, lines, strict=True)]
    made = _prompts(rows, texts, tokenizer, max_length, lines)
    return [tokens.prompt for tokens in made], sum(tokens.truncated > 0 for tokens in made)


@dataclass
class Collator:
    """Features to a batch: `input_ids`, `attention_mask` and `labels`, padded on the right.

    Labels are [batch, length] padded with -100; for encoders they are [batch]. All are int64. Other
    keys of the features are ignored.
    """

    tokenizer: PreTrainedTokenizerBase
    kind: Kind

    def __call__(self, batch: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pad = self.tokenizer.pad_token_id
        if pad is None:  # any token would do: the mask hides it
            pad = self.tokenizer.eos_token_id
        if pad is None:
            raise EngramError("the tokenizer has no pad token; set tokenizer.pad_token")
        ids = [feature["input_ids"] for feature in batch]
        labels = [feature["labels"] for feature in batch]
        encoder = self.kind == "encoder"
        return {
            "input_ids": _pad_right(ids, pad),  # pyright: ignore
            "attention_mask": _pad_right([[1] * len(row) for row in ids], 0),
            "labels": torch.tensor(labels) if encoder else _pad_right(labels, IGNORED),
        }


def _pad_right(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.int64)


def _label_indices(rows: Sequence[Row], labels: Sequence[str], where: str) -> list[int]:
    if not labels:
        raise EngramError(f"{where}: an encoder needs the list of its answers; declare options")
    index = {label: i for i, label in enumerate(labels)}
    for number, row in enumerate(rows, 1):
        said = answer(row).strip()
        if said not in index:
            raise EngramError(
                f"{where}, row {number}: {said!r} is not one of the answers; {nearest(said, index)}"
            )
    return [index[answer(row).strip()] for row in rows]


def _encode(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    lengths: tuple[int, int],
    where: str,
    mask_history: bool,
) -> list[Tokens]:
    lines = _lines(rows, where)
    if kind == "causal":
        made = causal_rows(rows, tokenizer, lines, mask_history)
        return [
            _causal(row, one, lengths, tokenizer, line)
            for row, one, line in zip(rows, made, lines, strict=True)
        ]
    for row, line in zip(rows, lines, strict=True):
        if "text" in row:
            raise EngramError(
                f"{line}: a row of text has no prompt, so only decoder-only models learn from it; "
                "give prompt and completion"
            )
    if kind == "encoder":
        texts = [prompt_text(row, tokenizer, line) for row, line in zip(rows, lines, strict=True)]
        return _prompts(rows, texts, tokenizer, lengths[0], lines)
    both = [row_texts(row, tokenizer, line) for row, line in zip(rows, lines, strict=True)]
    encoded = _prompts(rows, [prompt for prompt, _ in both], tokenizer, lengths[0], lines)
    targets = _targets(rows, [completion for _, completion in both], tokenizer, lines)
    for tokens, target, line in zip(encoded, targets, lines, strict=True):
        tokens.completion = target
        _check_completion(len(target), lengths[1], line)
    return encoded


def _lines(rows: Sequence[Row], where: str) -> list[str]:
    return [f"{where}, row {number}" for number in range(1, len(rows) + 1)]


def _causal(
    row: Row,
    made: CausalRow,
    lengths: tuple[int, int],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
) -> Tokens:
    excess = len(made.ids) - lengths[0]
    if "text" in row and excess > 0:
        raise EngramError(
            f"{where}: the text is {excess} tokens longer than max_length: {lengths[0]}; "
            "split the text or raise max_length"
        )
    if "text" not in row:
        _check_completion(len(made.ids) - made.last, lengths[1], where)
        _cut(made, lengths[0], lengths[0], tokenizer, where)
    first = made.learned.index(True)
    ignored = tuple(i for i, learned in enumerate(made.learned[first:]) if not learned)
    return Tokens(made.ids[:first], made.ids[first:], made.cut, ignored)


def _cut(
    row: CausalRow, room: int, max_length: int, tokenizer: PreTrainedTokenizerBase, where: str
) -> CausalRow:
    """The row, without the middle of its prompt if it is longer than `room`."""
    excess = len(row.ids) - room
    if excess > 0 and not shorten(row, excess, tokenizer):
        raise _no_room(max_length, where)
    return row


def _check_completion(length: int, max_completion_length: int, where: str) -> None:
    if length > max_completion_length:
        raise EngramError(
            f"{where}: the completion has {length} tokens, more than max_completion_length: "
            f"{max_completion_length}; raise it or shorten the completion"
        )


def _no_room(max_length: int, where: str) -> EngramError:
    return EngramError(f"{where}: max_length: {max_length} leaves no room for the prompt; raise it")


def _prompts(
    rows: Sequence[Row],
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    lines: Sequence[str],
) -> list[Tokens]:
    """Prompts of an encoder or an encoder-decoder, with the special tokens around them."""
    if not rows:
        return []
    around = special_tokens(tokenizer)
    bare = ids_of(texts, tokenizer)
    check_tokens(texts, bare, lines, "the prompt")
    made = []
    for i, ids in enumerate(bare):
        # A chat template has written its special tokens already.
        start, end = ([], []) if is_chat(rows[i]) else missing_around(ids, *around)
        room = max_length - len(start) - len(end)
        if room < 1:
            raise _no_room(max_length, lines[i])
        cut = max(0, len(ids) - room)
        if cut:
            at = cut_middle(token_lines(texts[i], tokenizer, len(ids)), cut)
            ids = ids[: at.start] + ids[at.stop :]
        made.append(Tokens(start + ids + end, [], cut))
    return made


def _targets(
    rows: Sequence[Row],
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[str],
) -> list[list[int]]:
    """Targets of an encoder-decoder, with the special tokens before and the end token behind."""
    if not rows:
        return []
    before, (_, end) = special_tokens(tokenizer)[0], end_token(tokenizer)
    bare = ids_of(texts, tokenizer)
    check_tokens(texts, bare, lines, "the completion")
    made = []
    for row, ids in zip(rows, bare, strict=True):
        start = [] if is_chat(row) else missing_around(ids, before, [])[0]
        # A chat template may have written the end token, with a line break after it in some.
        made.append([*start, *ids] if end in ids[-2:] else [*start, *ids, end])
    return made
