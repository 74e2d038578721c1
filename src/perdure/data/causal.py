"""Tokenizing rows for causal models: the ids, and which of them have a loss, as in `SFTTrainer`.

These tokens of a row are learned, as in TRL:

    text                    all tokens, and the end token
    prompt, completion      from the first token at which the ids of prompt and completion together
                            differ from those of the prompt alone
    messages                the assistant's turns, as with `assistant_only_loss=True`

An end token is added to plain text only, because a chat template writes the end of a turn itself.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from perdure.data.chat import (
    common_prefix,
    conversation,
    marked_tokens,
    prompt_in_answered,
    turns,
    write,
)
from perdure.data.columns import is_chat
from perdure.data.messages import learned as learns
from perdure.data.rows import Row
from perdure.data.special import check_tokens, end_token, ids_of, missing_around, special_tokens
from perdure.data.text import prompt_text
from perdure.data.truncate import cut_middle, token_lines
from perdure.errors import PerdureError


@dataclass
class CausalRow:
    """The token ids of a row.

    Args:
        text: the text that was tokenized, without the special tokens before it.
        ids: [tokens], the ids.
        learned: [tokens], whether each id has a loss.
        special: how many of the first ids are special tokens that are not in `text`.
        last: the index of the first id of the last answer.
        merged: whether a token spans the end of the prompt.
        parted: whether the prompt for this answer differs from the text before the answer in the
            whole conversation.
        cut: how many ids were left out.
    """

    text: str
    ids: list[int]
    learned: list[bool]
    special: int
    last: int
    merged: bool = False
    parted: bool = False
    cut: int = 0


def causal_rows(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[str],
    mask_history: bool = False,
) -> list[CausalRow]:
    """Tokenize rows in full, without cutting them.

    Args:
        rows: checked rows.
        tokenizer: the base's tokenizer.
        lines: the beginning of each row's error line.
        mask_history: whether only the assistant's last turn is learned. Otherwise all its turns
            are, except those with `weight: 0` or `train: false`.

    Raises:
        PerdureError: the tokenizer has no end token, or no chat template that fits, or there is
            nothing to learn in a row.
    """
    plain_indices = [i for i, row in enumerate(rows) if not is_chat(row)]
    plain = iter(
        _plain([rows[i] for i in plain_indices], tokenizer, [lines[i] for i in plain_indices])
    )
    return [
        _chat(row, tokenizer, where=line, mask_history=mask_history)
        if is_chat(row)
        else next(plain)
        for row, line in zip(rows, lines, strict=True)
    ]


def causal_prompts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, lines: Sequence[str]
) -> list[CausalRow]:
    """Tokenize the prompts that ask for the rows' answers, as scoring does; none has a loss."""
    texts = [prompt_text(row, tokenizer, line) for row, line in zip(rows, lines, strict=True)]
    before, _ = special_tokens(tokenizer)
    bare_ids = ids_of(texts, tokenizer)
    check_tokens(texts, bare_ids, lines=lines, part="the prompt")
    encoded_prompts = []
    for row, line, text, ids in zip(rows, lines, texts, bare_ids, strict=True):
        if is_chat(row):
            start, ids = [], _as_answered(row, text, ids, tokenizer=tokenizer, where=line)
        else:
            start = missing_around(ids, before, [])[0]
        ids = start + ids
        encoded_prompts.append(
            CausalRow(
                text=text,
                ids=ids,
                learned=[False] * len(ids),
                special=len(start),
                last=len(ids),
            )
        )
    return encoded_prompts


def shorten(row: CausalRow, excess: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Cut `excess` tokens that have no loss out of a row, in place.

    They are the middle of the first run of tokens without a loss, which is the prompt, or of the
    longest runs if the first is too short. At least one token of each run stays.

    Returns:
        Whether the row could be cut. If it has too few tokens without a loss, it is unchanged.
    """
    lines = [0] * row.special
    lines += token_lines(row.text, tokenizer, len(row.ids) - row.special)
    runs = _runs_without_loss(row)
    if sum(stop - start - 1 for start, stop in runs) < excess:
        return False
    first_start, first_stop = runs[0]
    if first_stop - first_start > excess:
        runs = runs[:1]
    else:
        runs = sorted(runs, key=lambda run: run[0] - run[1])  # the longest first
    removed: set[int] = set()
    for start, stop in runs:
        count = min(excess - len(removed), stop - start - 1)
        if count > 0:
            middle = cut_middle(lines[start:stop], count)
            removed |= set(range(start + middle.start, start + middle.stop))
    kept = [i for i in range(len(row.ids)) if i not in removed]
    row.ids, row.learned = [row.ids[i] for i in kept], [row.learned[i] for i in kept]
    row.last -= sum(i < row.last for i in removed)
    row.cut = excess
    return True


def _plain(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, lines: Sequence[str]
) -> list[CausalRow]:
    """Tokenize rows of plain text: `text`, or `prompt` and `completion`."""
    if not rows:
        return []
    end, end_id = end_token(tokenizer)
    before, _ = special_tokens(tokenizer)
    prompts = [row.get("prompt", "") for row in rows]
    completions = [row["text"] if "text" in row else row["completion"] for row in rows]
    # An end token that the user wrote is not written again.
    ended = [text if text.rstrip().endswith(end) else text + end for text in completions]
    texts = [prompt + completion for prompt, completion in zip(prompts, ended, strict=True)]
    prompt_ids = ids_of(prompts, tokenizer)
    check_tokens(prompts, prompt_ids, lines=lines, part="the prompt")
    encoded_rows = []
    for i, ids in enumerate(ids_of(texts, tokenizer)):
        start = missing_around(ids, before, [])[0]
        same = common_prefix(prompt_ids[i], ids)
        # If only the end token follows, the completion has no token, unless its text is part of a
        # token of the prompt.
        if set(ids[same:]) <= {end_id}:
            text = completions[i]
            check_tokens([text], ids_of([text], tokenizer), lines=[lines[i]], part="the text")
        first = 0 if "text" in rows[i] else len(start) + same
        encoded_rows.append(
            CausalRow(
                text=texts[i],
                ids=start + ids,
                learned=[place >= first for place in range(len(start) + len(ids))],
                special=len(start),
                last=first,
                merged=same < len(prompt_ids[i]),
            )
        )
    return encoded_rows


def _chat(
    row: Row, tokenizer: PreTrainedTokenizerBase, where: str, mask_history: bool
) -> CausalRow:
    """Tokenize a row of messages."""
    messages = conversation(row)
    answers = [str(m.get("content") or "") for m in messages if m["role"] == "assistant"]
    check_tokens(
        answers, ids_of(answers, tokenizer), lines=[where] * len(answers), part="the answer"
    )
    text, prompt = write(messages, row, tokenizer, where), prompt_text(row, tokenizer, where)
    ids, prompt_ids = ids_of([text, prompt], tokenizer)
    same = common_prefix(prompt_ids, ids)
    encoded = CausalRow(text=text, ids=ids, learned=[False] * len(ids), special=0, last=same)
    follows = text.startswith(prompt)
    if same < len(prompt_ids):
        asked_ids = _as_answered(row, prompt, prompt_ids, tokenizer=tokenizer, where=where)
        if same < len(asked_ids):
            encoded.merged, encoded.parted = follows, not follows
    if "prompt" in row:
        # The completion may have several messages, so this prompt may be shorter.
        first_prompt = write(row["prompt"], row, tokenizer, where, generation_prompt=True)
        first = common_prefix(ids_of([first_prompt], tokenizer)[0], ids)
        learned = [place >= first for place in range(len(ids))]
    else:
        learned = _assistant(row, encoded, tokenizer=tokenizer, where=where, follows=follows)
        # Marks of the template may begin after a text that it writes itself.
        if any(learned[encoded.last :]) and not learned[encoded.last]:
            encoded.parted = True
    left_out = [
        i
        for i, message in enumerate(messages)
        if message["role"] == "assistant" and not learns(message)
    ]
    if mask_history:
        last_learned = learns(messages[-1])
        learned = [
            last_learned and has_loss and place >= encoded.last
            for place, has_loss in enumerate(learned)
        ]
    elif left_out:
        learned = _without(
            left_out, learned, row=row, encoded=encoded, tokenizer=tokenizer, where=where
        )
    encoded.learned = learned
    if not any(learned):
        raise PerdureError(
            f"{where}: nothing is learned from it, because no token of the assistant has a loss; "
            "drop the row"
        )
    return encoded


def _as_answered(
    row: Row, prompt: str, ids: list[int], tokenizer: PreTrainedTokenizerBase, where: str
) -> list[int]:
    """Return the ids of a chat prompt up to where they differ once an answer follows.

    Some generation prompts open a block of reasoning, while the template begins an answer without
    reasoning in another way. The ids that both have in common are a context that the model has seen
    in training.
    """
    texts = prompt_in_answered(row, prompt, tokenizer=tokenizer, where=where)
    if texts is None:
        return ids
    question_ids, answered_ids = ids_of(texts, tokenizer)
    length = common_prefix(ids, answered_ids)
    # If the template changes the question itself, no prefix would help, so the ids stay whole.
    return ids[:length] if length >= common_prefix(ids, question_ids) else ids


def _assistant(
    row: Row, encoded: CausalRow, tokenizer: PreTrainedTokenizerBase, where: str, follows: bool
) -> list[bool]:
    """Return for each token whether it is the assistant's.

    The template's own marks decide if it has any, otherwise the turns are located one by one.
    `follows` says that the conversation's text begins with the prompt of the last answer.
    """
    marked = marked_tokens(row, tokenizer, where)
    if marked:
        assert marked[0] == encoded.ids
        return marked[1]
    if follows and sum(message["role"] == "assistant" for message in row["messages"]) == 1:
        return [place >= encoded.last for place in range(len(encoded.ids))]
    learned = [False] * len(encoded.ids)
    spans = [turn for _, turn in turns(row, tokenizer, where)]
    starts = _tokens_before(encoded, [turn.start for turn in spans], tokenizer)
    stops = _tokens_before(encoded, [turn.stop for turn in spans], tokenizer)
    for start, stop in zip(starts, stops, strict=True):
        learned[start:stop] = [True] * (stop - start)
    return learned


def _without(
    left_out: Sequence[int],
    learned: list[bool],
    row: Row,
    encoded: CausalRow,
    tokenizer: PreTrainedTokenizerBase,
    where: str,
) -> list[bool]:
    """Return `learned` without the turns `left_out`, each from the end of the turn before it."""
    start, learned = 0, list(learned)
    assistant_turns = turns(row, tokenizer, where)
    stops = _tokens_before(encoded, [turn.stop for _, turn in assistant_turns], tokenizer)
    for (i, _), stop in zip(assistant_turns, stops, strict=True):
        if i in left_out:
            learned[start:stop] = [False] * (stop - start)
        start = stop
    return learned


def _tokens_before(
    encoded: CausalRow, characters: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Return how many tokens end at or before each of these positions in the text."""
    if not tokenizer.is_fast:  # a slow tokenizer has no offsets
        parts = ids_of([encoded.text[:character] for character in characters], tokenizer)
        return [common_prefix(part, encoded.ids) for part in parts]
    offsets: Any = tokenizer(
        encoded.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    # Only the ends are used: some tokenizers do not include the space before a word in its offsets.
    ends = list(accumulate((stop for _, stop in offsets), max))
    return [bisect_right(ends, character) for character in characters]


def _runs_without_loss(row: CausalRow) -> list[tuple[int, int]]:
    """Return the start and stop of each run of tokens without a loss, after the special tokens."""
    runs, start = [], 0
    for learned, run in groupby(row.learned):
        stop = start + len(list(run))
        if not learned and stop > row.special:
            runs.append((max(start, row.special), stop))
        start = stop
    return runs
