"""Tokenizing rows: which tokens a model reads and learns, and which are cut if a row is too long.

    causal    <bos> prompt | completion <eos>     one sequence, with a loss after the bar
    seq2seq   prompt <eos> -> completion <eos>    a loss on the target
    encoder   [CLS] prompt [SEP] -> label         a loss on the label

For a causal model, the ids and labels are those of TRL's `SFTTrainer`. Prompt and completion are
joined without adding a space, and the loss begins at the first token at which the ids of both
differ from those of the prompt alone. Messages are rendered with the tokenizer's chat template, and
the assistant's turns are learned. The whole of a `{"text"}` row is learned.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorWithFlattening, PreTrainedTokenizerBase

from perdure.data.causal import CausalRow, causal_prompts, causal_rows, shorten
from perdure.data.columns import is_chat
from perdure.data.rows import Row, answer
from perdure.data.special import check_tokens, end_token, ids_of, missing_around, special_tokens
from perdure.data.text import completion_text, prompt_text, row_texts
from perdure.data.truncate import cut_middle, token_lines
from perdure.errors import PerdureError, nearest
from perdure.models.batch import padded
from perdure.models.kinds import Kind
from perdure.models.token_cache import AT_ONCE, IGNORED, TokenCache, Tokens


__all__ = [
    "IGNORED",
    "Collator",
    "Features",
    "TokenCache",
    "Tokens",
    "answer",
    "check_known",
    "completion_text",
    "encode",
    "features",
    "packed_features",
    "prompt_text",
    "prompts",
]

Features = dict[str, Any]  # a tokenized row: token ids, attention mask and labels
STAND_IN = 2  # tokens of room that a causal prompt leaves for an answer: one, and the end token


def encode(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    max_length: int,
    max_completion_length: int,
    mask_history: bool = False,
) -> Tokens:
    """Tokenize one row as `features` does; an encoder's completion is empty."""
    return _encode(
        [row],
        tokenizer,
        kind=kind,
        max_length=max_length,
        max_completion_length=max_completion_length,
        lines=["the row"],
        mask_history=mask_history,
    )[0]


def encode_all(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    max_length: int,
    max_completion_length: int,
    where: str,
    mask_history: bool = False,
    cache: TokenCache | None = None,
    first: int = 1,
) -> list[Tokens]:
    """Tokenize rows as `features` does, which has the same arguments and errors."""

    def tokenize(some_rows: Sequence[Row], lines: Sequence[str]) -> list[Tokens]:
        return _encode(
            some_rows,
            tokenizer,
            kind=kind,
            max_length=max_length,
            max_completion_length=max_completion_length,
            lines=lines,
            mask_history=mask_history,
        )

    lines = _lines(rows, where, first)
    if cache is None:
        return tokenize(rows, lines)
    settings = ("row", kind, max_length, max_completion_length, mask_history)
    return cache.tokens(rows, lines, settings=settings, tokenize=tokenize)


def features(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    max_length: int,
    max_completion_length: int,
    labels: Sequence[str] | None,
    where: str,
    mask_history: bool = False,
    cache: TokenCache | None = None,
    first: int = 1,
) -> tuple[list[dict[str, Any]], int]:
    """Tokenize rows into the features that the collator takes.

    Args:
        rows: checked rows.
        tokenizer: the base's tokenizer.
        kind: the kind of model of the base.
        max_length: the most tokens of the prompt, or for causal models of prompt and completion
            together; special tokens count.
        max_completion_length: the most tokens of the completion with its end token, or of the last
            turn if several turns are learned.
        labels: the answers that an encoder can give, in the order of its head; otherwise None.
        where: the name of the rows, such as "agnews train"; it begins each error line.
        mask_history: whether only the last of the assistant's turns is learned.
        cache: the tokens of rows under this tokenizer; a row in it is not tokenized again.
        first: the number of the first row, for error lines.

    Returns:
        The features of each row, `input_ids` and `labels`, and the number of rows that were cut.

    Raises:
        PerdureError: a completion is too long or leaves no room for its prompt, a row has no prompt
            although the model needs one, or an encoder's answer is not among the labels.
    """
    encoded_rows = encode_all(
        rows,
        tokenizer,
        kind=kind,
        max_length=max_length,
        max_completion_length=max_completion_length,
        where=where,
        mask_history=mask_history,
        cache=cache,
        first=first,
    )
    truncated = sum(tokens.truncated > 0 for tokens in encoded_rows)
    if kind == "encoder":
        indices = _label_indices(rows, labels or (), where, first)
        row_features = [
            {"input_ids": tokens.prompt, "labels": index}
            for tokens, index in zip(encoded_rows, indices, strict=True)
        ]
    else:
        row_features = [_sequence_features(tokens, kind) for tokens in encoded_rows]
    return row_features, truncated


def packed_features(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, **settings: Any
) -> tuple[list[Features], int]:
    """Return what `features` returns, with arrays of four bytes in place of lists of token ids.

    A list of ids takes up to 41 bytes for each. The rows are tokenized in parts, so that there are
    never many such lists. `settings` are the other arguments of `features`.
    """
    result, truncated = [], 0
    for start in range(0, len(rows), AT_ONCE):
        part, cut = features(rows[start : start + AT_ONCE], tokenizer, first=start + 1, **settings)
        truncated += cut
        result += [
            {key: array("i", ids) if isinstance(ids, list) else ids for key, ids in row.items()}
            for row in part
        ]
    return result, truncated


def _sequence_features(tokens: Tokens, kind: Kind) -> Features:
    """Return the input ids and the labels of a row for a model that generates."""
    if kind == "seq2seq":
        return {"input_ids": tokens.prompt, "labels": tokens.completion}
    return {
        "input_ids": tokens.prompt + tokens.completion,
        "labels": [IGNORED] * len(tokens.prompt) + tokens.labels,
    }


def check_known(
    ids: Sequence[int], tokens: int | None, tokenizer: PreTrainedTokenizerBase, where: str
) -> None:
    """Check that the base has an embedding for each id.

    Args:
        ids: the ids.
        tokens: how many embeddings the base has, or None if the number is unknown.
        tokenizer: the base's tokenizer.
        where: the beginning of the error line.

    Raises:
        PerdureError: an id has no embedding; the line names the token and says how to fix it.
    """
    largest = max(ids, default=0)
    if tokens is None or largest < tokens:
        return
    raise PerdureError(
        f"{where}: the token {tokenizer.convert_ids_to_tokens(largest)!r} has the id {largest}, "
        f"but the base has {tokens} embeddings; use the tokenizer that belongs to it, or give it "
        "more with model.resize_token_embeddings(len(tokenizer)) and save it"
    )


def prompts(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    max_length: int,
    where: str,
    cache: TokenCache | None = None,
) -> tuple[list[list[int]], list[int]]:
    """Tokenize the prompts of rows without their answers.

    The prompt of a row with several turns asks for the last one. A causal prompt leaves room for an
    answer of one token. A row that is in the `cache` is not tokenized again.

    Returns:
        The ids of each prompt, and the indices of the prompts that were cut.

    Raises:
        PerdureError: a row has no prompt, or `max_length` leaves no room for it.
    """

    def tokenize(some_rows: Sequence[Row], lines: Sequence[str]) -> list[Tokens]:
        return _encode_prompts(some_rows, tokenizer, kind=kind, max_length=max_length, lines=lines)

    lines = _lines(rows, where)
    if cache is None:
        encoded = tokenize(rows, lines)
    else:
        settings = ("prompt", kind, max_length)
        encoded = cache.tokens(rows, lines, settings=settings, tokenize=tokenize)
    cut = [i for i, tokens in enumerate(encoded) if tokens.truncated]
    return [tokens.prompt for tokens in encoded], cut


def _encode_prompts(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    max_length: int,
    lines: Sequence[str],
) -> list[Tokens]:
    if kind == "causal":
        causal = causal_prompts(rows, tokenizer, lines)
        for prompt, line in zip(causal, lines, strict=True):
            _cut(prompt, max_length - STAND_IN, max_length, tokenizer=tokenizer, where=line)
        return [Tokens(prompt.ids, [], prompt.cut) for prompt in causal]
    texts = [prompt_text(row, tokenizer, line) for row, line in zip(rows, lines, strict=True)]
    return _prompts(rows, texts, tokenizer=tokenizer, max_length=max_length, lines=lines)


@dataclass
class Collator:
    """Collate features to a batch of `input_ids`, `attention_mask` and `labels`.

    All are int64 tensors of shape [batch, length], padded on the right, the labels with -100. The
    labels of an encoder have shape [batch]. Other keys of the features are ignored.

    With `padding_free`, rows of a causal model are one sequence [1, tokens], and `position_ids`
    that begin again with each row take the place of the mask: a model that can pack rows
    (`models.padding.can_pack`) then lets none of them see another. It must not use a cache.
    """

    tokenizer: PreTrainedTokenizerBase
    kind: Kind
    padding_free: bool = False

    def __call__(self, batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if self.padding_free:
            return {**DataCollatorWithFlattening()(list(batch)), "use_cache": False}
        ids, mask = padded([feature["input_ids"] for feature in batch], self.tokenizer)
        labels = [torch.tensor(feature["labels"], dtype=torch.int64) for feature in batch]
        if self.kind == "encoder":
            stacked = torch.stack(labels)
        else:
            stacked = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        return {"input_ids": ids, "attention_mask": mask, "labels": stacked}


def _label_indices(rows: Sequence[Row], labels: Sequence[str], where: str, first: int) -> list[int]:
    if not labels:
        raise PerdureError(f"{where}: an encoder needs the list of its answers; declare options")
    index = {label: i for i, label in enumerate(labels)}
    for number, row in enumerate(rows, first):
        text = answer(row).strip()
        if text not in index:
            raise PerdureError(
                f"{where}, row {number}: {text!r} is not one of the answers; {nearest(text, index)}"
            )
    return [index[answer(row).strip()] for row in rows]


def _encode(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    max_length: int,
    max_completion_length: int,
    lines: Sequence[str],
    mask_history: bool,
) -> list[Tokens]:
    if kind == "causal":
        encoded_rows = causal_rows(rows, tokenizer, lines=lines, mask_history=mask_history)
        return [
            _causal(
                row,
                encoded,
                max_length=max_length,
                max_completion_length=max_completion_length,
                tokenizer=tokenizer,
                where=line,
            )
            for row, encoded, line in zip(rows, encoded_rows, lines, strict=True)
        ]
    for row, line in zip(rows, lines, strict=True):
        if "text" in row:
            raise PerdureError(
                f"{line}: a row of text has no prompt, so only decoder-only models can learn it; "
                "give prompt and completion"
            )
    if kind == "encoder":
        texts = [prompt_text(row, tokenizer, line) for row, line in zip(rows, lines, strict=True)]
        return _prompts(rows, texts, tokenizer=tokenizer, max_length=max_length, lines=lines)
    texts = [row_texts(row, tokenizer, line) for row, line in zip(rows, lines, strict=True)]
    encoded_prompts = _prompts(
        rows,
        [prompt for prompt, _ in texts],
        tokenizer=tokenizer,
        max_length=max_length,
        lines=lines,
    )
    targets = _targets(
        rows, [completion for _, completion in texts], tokenizer=tokenizer, lines=lines
    )
    for tokens, target, line in zip(encoded_prompts, targets, lines, strict=True):
        tokens.completion = target
        _check_completion(len(target), max_completion_length, where=line)
    return encoded_prompts


def _lines(rows: Sequence[Row], where: str, first: int = 1) -> list[str]:
    return [f"{where}, row {number}" for number in range(first, first + len(rows))]


def _causal(
    row: Row,
    encoded: CausalRow,
    max_length: int,
    max_completion_length: int,
    tokenizer: PreTrainedTokenizerBase,
    where: str,
) -> Tokens:
    excess = len(encoded.ids) - max_length
    if "text" in row and excess > 0:
        raise PerdureError(
            f"{where}: the text is {excess} tokens longer than max_length: {max_length}; "
            "split the text or raise max_length"
        )
    if "text" not in row:
        completion_length = len(encoded.ids) - encoded.last
        _check_completion(completion_length, max_completion_length, where=where)
        _cut(encoded, max_length, max_length, tokenizer=tokenizer, where=where)
    first = encoded.learned.index(True)
    return Tokens(
        prompt=encoded.ids[:first],
        completion=encoded.ids[first:],
        truncated=encoded.cut,
        ignored=tuple(i for i, learned in enumerate(encoded.learned[first:]) if not learned),
        merged=encoded.merged,
        parted=encoded.parted,
    )


def _cut(
    row: CausalRow, room: int, max_length: int, tokenizer: PreTrainedTokenizerBase, where: str
) -> None:
    """Cut the middle out of a row's prompt, in place, if the row has more than `room` tokens."""
    excess = len(row.ids) - room
    if excess > 0 and not shorten(row, excess, tokenizer):
        raise _no_room(max_length, where)


def _check_completion(length: int, max_completion_length: int, where: str) -> None:
    if length > max_completion_length:
        raise PerdureError(
            f"{where}: the completion has {length} tokens, more than max_completion_length: "
            f"{max_completion_length}; raise it or shorten the completion"
        )


def _no_room(max_length: int, where: str) -> PerdureError:
    return PerdureError(
        f"{where}: max_length: {max_length} leaves no room for the prompt; raise it"
    )


def _prompts(
    rows: Sequence[Row],
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    lines: Sequence[str],
) -> list[Tokens]:
    """Tokenize prompts for an encoder or an encoder-decoder, with special tokens around them."""
    if not rows:
        return []
    before, after = special_tokens(tokenizer)
    bare_ids = ids_of(texts, tokenizer)
    check_tokens(texts, bare_ids, lines=lines, part="the prompt")
    encoded_prompts = []
    for i, ids in enumerate(bare_ids):
        # A chat template has written its special tokens already.
        start, end = ([], []) if is_chat(rows[i]) else missing_around(ids, before, after)
        room = max_length - len(start) - len(end)
        if room < 1:
            raise _no_room(max_length, lines[i])
        excess = max(0, len(ids) - room)
        if excess:
            middle = cut_middle(token_lines(texts[i], tokenizer, len(ids)), excess)
            ids = ids[: middle.start] + ids[middle.stop :]
        encoded_prompts.append(Tokens(prompt=start + ids + end, completion=[], truncated=excess))
    return encoded_prompts


def _targets(
    rows: Sequence[Row],
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[str],
) -> list[list[int]]:
    """Tokenize targets for an encoder-decoder, with special tokens before and an end token."""
    if not rows:
        return []
    before, after = special_tokens(tokenizer, target=True)
    _, end = end_token(tokenizer)
    # What follows the end token, such as the language of MBart's targets.
    behind = after[after.index(end) + 1 :] if end in after else []
    bare_ids = ids_of(texts, tokenizer)
    check_tokens(texts, bare_ids, lines=lines, part="the completion")
    targets = []
    for row, ids in zip(rows, bare_ids, strict=True):
        start = [] if is_chat(row) else missing_around(ids, before, [])[0]
        # A chat template may have written the end token, and a line break after it.
        has_end = end in (ids[-2:] if is_chat(row) else ids[-1:])
        targets.append([*start, *ids] if has_end else [*start, *ids, end, *behind])
    return targets
