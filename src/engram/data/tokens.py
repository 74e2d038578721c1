"""Rows to tokens: what is shown, what is learned, and what is cut when a prompt is too long.

    causal    <bos> prompt | completion <eos>     one sequence, loss right of the bar
    seq2seq   prompt <eos> -> completion <eos>    loss on the target
    encoder   [CLS] prompt [SEP] -> label         loss on the label

Prompt and completion are joined as TRL joins them, by plain concatenation, with one exception:
where neither has white space at the joint, a causal model gets one space ("Answer:" + "yes" is read
as "Answer: yes"). Messages go through the tokenizer's chat template. A `{"text"}` row is learned
whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from engram.data.rows import Row, answer
from engram.data.text import completion_text, is_chat, prompt_text, row_texts
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
]

Kind = Literal["causal", "seq2seq", "encoder"]
IGNORED = -100  # the label of a position without loss, as everywhere in PyTorch


@dataclass
class Tokens:
    """Token ids of a row, special tokens included; `truncated` tokens of the prompt were cut."""

    prompt: list[int]
    completion: list[int]
    truncated: int = 0


def encode(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    max_length: int,
    max_completion_length: int,
) -> Tokens:
    """Tokens of one row, as `features` makes them; an encoder's completion is empty."""
    return _encode([row], tokenizer, kind, max_length, max_completion_length, "the row")[0]


def features(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    max_length: int,
    max_completion_length: int,
    labels: Sequence[str] | None,
    where: str,
) -> tuple[list[dict[str, Any]], int]:
    """What the collator takes, and the number of rows whose prompt was cut.

    Args:
        rows: checked rows.
        tokenizer: the base's own.
        kind: the family of the base.
        max_length: tokens of the prompt, for causal models of prompt and completion together;
            special tokens count.
        max_completion_length: tokens of the completion with its end token.
        labels: the answers an encoder can give, in the order of its head; else None.
        where: what the rows are, such as "agnews train"; it begins each error line.

    Raises:
        EngramError: a completion is too long or leaves no room for its prompt, a row has no prompt
            where the model needs one, or an encoder's answer is not among the labels.
    """
    encoded = _encode(rows, tokenizer, kind, max_length, max_completion_length, where)
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
                "labels": [IGNORED] * len(row.prompt) + row.completion,
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
    max_length: int,
    max_completion_length: int,
    where: str,
) -> list[Tokens]:
    if not rows:
        return []
    lines = [f"{where}, row {number}" for number in range(1, len(rows) + 1)]
    texts = [row_texts(row, tokenizer, line) for row, line in zip(rows, lines, strict=True)]
    if kind == "causal":
        texts = [_spaced(row, *text) for row, text in zip(rows, texts, strict=True)]
    prompts = _ids([prompt for prompt, _ in texts], tokenizer)
    completions = [[] for _ in rows]
    if kind != "encoder":
        completions = _completions(texts, prompts, tokenizer, kind)
    before, after = _special(tokenizer)

    encoded = []
    for i, (row, line) in enumerate(zip(rows, lines, strict=True)):
        prompt, completion = prompts[i], completions[i]
        # A chat template has written its special tokens already, and a causal prompt does not end.
        start = [] if is_chat(row) else before
        end = [] if is_chat(row) or kind == "causal" else after
        if kind == "seq2seq":
            completion = start + completion
        room = max_length - len(start) - len(end) - (len(completion) if kind == "causal" else 0)
        if "text" in row:
            _check_text(kind, room, max_length, line)
        else:
            _check_completion(len(completion), max_completion_length, room, max_length, line)
        cut = max(0, len(prompt) - room)
        if cut:
            at = cut_middle(token_lines(texts[i][0], tokenizer, len(prompt)), cut)
            prompt = prompt[: at.start] + prompt[at.stop :]
        encoded.append(Tokens(start + prompt + end, completion, cut))
    return encoded


def _check_text(kind: Kind, room: int, max_length: int, where: str) -> None:
    if kind != "causal":
        raise EngramError(
            f"{where}: a row of text has no prompt, so only decoder-only models learn from it; "
            "give prompt and completion"
        )
    if room < 0:
        raise EngramError(
            f"{where}: the text is {-room} tokens longer than max_length: {max_length}; "
            "split the text or raise max_length"
        )


def _check_completion(
    length: int, max_completion_length: int, room: int, max_length: int, where: str
) -> None:
    if length > max_completion_length:
        raise EngramError(
            f"{where}: the completion has {length} tokens, more than max_completion_length: "
            f"{max_completion_length}; raise it or shorten the completion"
        )
    if room < 1:
        raise EngramError(
            f"{where}: max_length: {max_length} leaves no room for the prompt; raise it"
        )


def _completions(
    texts: Sequence[tuple[str, str]],
    prompts: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
) -> list[list[int]]:
    """Completion ids with the end token.

    A causal model continues its prompt, so its completion is read off the tokens of both together;
    where a token spans the joint, and the prompt alone would not be found again, it is apart.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise EngramError("the tokenizer has no end token; set tokenizer.eos_token")
    alone = _ids([completion for _, completion in texts], tokenizer)
    if kind == "causal":
        joined = _ids([prompt + completion for prompt, completion in texts], tokenizer)
        alone = [
            both[len(prompt) :] if both[: len(prompt)] == prompt else apart
            for both, prompt, apart in zip(joined, prompts, alone, strict=True)
        ]
    # A chat template writes the end token itself, with a line break after it in some.
    return [ids if end in ids[-2:] else [*ids, end] for ids in alone]  # pyright: ignore


def _spaced(row: Row, prompt: str, completion: str) -> tuple[str, str]:
    if is_chat(row) or not prompt or prompt[-1].isspace() or completion[0].isspace():
        return prompt, completion
    return prompt, f" {completion}"


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]  # pyright: ignore


def _special(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after every text."""
    bare = _ids(["a"], tokenizer)[0]
    whole = tokenizer(["a"], verbose=False)["input_ids"][0]  # pyright: ignore
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:at], whole[at + len(bare) :]
