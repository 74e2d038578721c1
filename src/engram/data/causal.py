"""Rows as a causal model learns them: ids, and which of them carry a loss, as in TRL's SFTTrainer.

    text                    all of it, and the end token
    prompt, completion      from where the ids of both part from the prompt's alone
    messages                the assistant's turns, as with `assistant_only_loss=True`

An end token is added to text alone; a chat template writes what ends a turn.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from engram.data.chat import (
    common_prefix,
    conversation,
    is_chat,
    marked_tokens,
    prompt_in_answered,
    turns,
    write,
)
from engram.data.messages import learned as learns
from engram.data.rows import Row
from engram.data.special import check_tokens, end_token, ids_of, missing_around, special_tokens
from engram.data.text import prompt_text
from engram.data.truncate import cut_middle, token_lines
from engram.errors import EngramError


@dataclass
class CausalRow:
    """Ids of a row and which of them are learned.

    `text` is what the ids were made of, but the first `special` ones, which the tokenizer puts
    before every text. `last` is where the part begins that answers the prompt. `merged` says that
    a token spans the end of the prompt, `parted` that the template writes the prompt of this answer
    otherwise where it asks for one, `cut` how many ids were left out.
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
    """Rows in full, not cut yet; each of `lines` begins the error line of a row.

    With `mask_history` only the assistant's last turn is learned, otherwise all are, but those with
    `weight: 0` or `train: false`.

    Raises:
        EngramError: no end token, no chat template that fits, or nothing to learn in a row.
    """
    places = [i for i, row in enumerate(rows) if not is_chat(row)]
    plain = iter(_plain([rows[i] for i in places], tokenizer, [lines[i] for i in places]))
    return [
        _chat(row, tokenizer, line, mask_history) if is_chat(row) else next(plain)
        for row, line in zip(rows, lines, strict=True)
    ]


def causal_prompts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, lines: Sequence[str]
) -> list[CausalRow]:
    """What a model is asked with: the rows without their answers, and without any loss."""
    texts = [prompt_text(row, tokenizer, line) for row, line in zip(rows, lines, strict=True)]
    before, _ = special_tokens(tokenizer)
    bare = ids_of(texts, tokenizer)
    check_tokens(texts, bare, lines, "the prompt")
    made = []
    for row, line, text, ids in zip(rows, lines, texts, bare, strict=True):
        if is_chat(row):
            start, ids = [], _as_answered(row, text, ids, tokenizer, line)
        else:
            start = missing_around(ids, before, [])[0]
        ids = start + ids
        made.append(CausalRow(text, ids, [False] * len(ids), len(start), len(ids)))
    return made


def shorten(row: CausalRow, excess: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Leave out `excess` tokens in the middle of what is not learned; whether there are as many.

    Of the first stretch without loss, which is the prompt, if it is long enough, else of the
    longest ones. Something of each stays.
    """
    lines = [0] * row.special
    lines += token_lines(row.text, tokenizer, len(row.ids) - row.special)
    stretches = _stretches(row)
    if sum(stop - start - 1 for start, stop in stretches) < excess:
        return False
    first, *others = stretches
    if first[1] - first[0] <= excess:
        others = sorted(stretches, key=lambda stretch: stretch[0] - stretch[1])
    else:
        others = [first]
    gone: set[int] = set()
    for start, stop in others:
        share = min(excess - len(gone), stop - start - 1)
        if share > 0:
            at = cut_middle(lines[start:stop], share)
            gone |= set(range(start + at.start, start + at.stop))
    kept = [i for i in range(len(row.ids)) if i not in gone]
    row.ids, row.learned = [row.ids[i] for i in kept], [row.learned[i] for i in kept]
    row.last -= sum(i < row.last for i in gone)
    row.cut = excess
    return True


def _plain(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, lines: Sequence[str]
) -> list[CausalRow]:
    """Rows of text, whole or in two parts."""
    if not rows:
        return []
    end, end_id = end_token(tokenizer)
    before, _ = special_tokens(tokenizer)
    prompts = [row.get("prompt", "") for row in rows]
    said = [row["text"] if "text" in row else row["completion"] for row in rows]
    # An end token that the user wrote is not written again.
    ended = [text if text.rstrip().endswith(end) else text + end for text in said]
    texts = [prompt + completion for prompt, completion in zip(prompts, ended, strict=True)]
    asked = ids_of(prompts, tokenizer)
    check_tokens(prompts, asked, lines, "the prompt")
    made = []
    for i, ids in enumerate(ids_of(texts, tokenizer)):
        start = missing_around(ids, before, [])[0]
        same = common_prefix(asked[i], ids)
        if set(ids[same:]) <= {end_id}:  # unless a token of the prompt holds the answer, too
            check_tokens([said[i]], ids_of([said[i]], tokenizer), [lines[i]], "the text")
        first = 0 if "text" in rows[i] else len(start) + same
        learned = [place >= first for place in range(len(start) + len(ids))]
        merged = same < len(asked[i])
        made.append(CausalRow(texts[i], start + ids, learned, len(start), first, merged))
    return made


def _chat(
    row: Row, tokenizer: PreTrainedTokenizerBase, where: str, mask_history: bool
) -> CausalRow:
    said = conversation(row)
    text, asked = write(said, row, tokenizer, where), prompt_text(row, tokenizer, where)
    ids, asked_ids = ids_of([text, asked], tokenizer)
    same = common_prefix(asked_ids, ids)
    made = CausalRow(text, ids, [False] * len(ids), 0, same)
    if same < len(asked_ids) and same < len(_as_answered(row, asked, asked_ids, tokenizer, where)):
        made.merged, made.parted = text.startswith(asked), not text.startswith(asked)
    if "prompt" in row:
        prompt = write(row["prompt"], row, tokenizer, where, generation_prompt=True)
        first = common_prefix(ids_of([prompt], tokenizer)[0], ids)
        learned = [place >= first for place in range(len(ids))]
    else:
        learned = _assistant(row, made, tokenizer, where, text.startswith(asked))
    turn = [message["role"] == "assistant" for message in said]
    left_out = [i for i, message in enumerate(said) if turn[i] and not learns(message)]
    if mask_history:
        kept = learns(said[-1])
        learned = [kept and of and place >= made.last for place, of in enumerate(learned)]
    elif left_out:
        learned = _without(left_out, learned, row, made, tokenizer, where)
    made.learned = learned
    if not any(learned):
        raise EngramError(
            f"{where}: nothing of it is learned: no assistant's turn has a weight; drop the row"
        )
    return made


def _as_answered(
    row: Row, prompt: str, ids: list[int], tokenizer: PreTrainedTokenizerBase, where: str
) -> list[int]:
    """The ids of a chat prompt as far as they stay the same once any answer follows.

    Some generation prompts begin a thought, and the template has another beginning for an answer
    without one: asked with what both have in common, a model stands where it has learned.
    """
    if not (other := prompt_in_answered(row, prompt, tokenizer, where)):
        return ids
    question, answered = ids_of(other, tokenizer)
    kept = common_prefix(ids, answered)
    # Where the question itself is written otherwise, that cannot be helped.
    return ids[:kept] if kept >= common_prefix(ids, question) else ids


def _assistant(
    row: Row, made: CausalRow, tokenizer: PreTrainedTokenizerBase, where: str, follows: bool
) -> list[bool]:
    """Which tokens are the assistant's: by the template's own marks, or turn by turn."""
    marked = marked_tokens(row, tokenizer, where)
    if marked:
        assert marked[0] == made.ids
        return marked[1]
    if follows and sum(message["role"] == "assistant" for message in row["messages"]) == 1:
        return [place >= made.last for place in range(len(made.ids))]
    learned = [False] * len(made.ids)
    spans = [turn for _, turn in turns(row, tokenizer, where)]
    starts = _tokens_before(made, [turn.start for turn in spans], tokenizer)
    stops = _tokens_before(made, [turn.stop for turn in spans], tokenizer)
    for start, stop in zip(starts, stops, strict=True):
        learned[start:stop] = [True] * (stop - start)
    return learned


def _without(
    left_out: Sequence[int],
    learned: list[bool],
    row: Row,
    made: CausalRow,
    tokenizer: PreTrainedTokenizerBase,
    where: str,
) -> list[bool]:
    """`learned` without some turns; with each goes what is learned since the one before."""
    start, learned = 0, list(learned)
    found = turns(row, tokenizer, where)
    stops = _tokens_before(made, [turn.stop for _, turn in found], tokenizer)
    for (i, _), stop in zip(found, stops, strict=True):
        if i in left_out:
            learned[start:stop] = [False] * (stop - start)
        start = stop
    return learned


def _tokens_before(
    made: CausalRow, characters: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """How many tokens lie wholly before each of these characters of the text."""
    if not tokenizer.is_fast:  # which cannot tell where a token stands
        parts = ids_of([made.text[:character] for character in characters], tokenizer)
        return [common_prefix(part, made.ids) for part in parts]
    offsets: Any = tokenizer(
        made.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    # By the ends alone: some tokenizers do not count the space before a word to its token.
    ends = list(accumulate((stop for _, stop in offsets), max))
    return [bisect_right(ends, character) for character in characters]


def _stretches(row: CausalRow) -> list[tuple[int, int]]:
    """Runs of tokens without loss, but the special tokens before them."""
    found, start = [], 0
    for learned, run in groupby(row.learned):
        stop = start + len(list(run))
        if not learned and stop > row.special:
            found.append((max(start, row.special), stop))
        start = stop
    return found
