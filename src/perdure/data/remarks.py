"""Warnings about the tokens of rows that are probably a mistake, given before learning."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from perdure.data.columns import is_chat
from perdure.data.rows import Row
from perdure.models.kinds import Kind
from perdure.models.token_cache import Tokens


def remarks(
    rows: Sequence[Row],
    encoded_rows: Sequence[Tokens],
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    where: str,
) -> list[str]:
    """Return warnings about unknown tokens, prompts that differ in training, and missing ends.

    Args:
        rows: rows that can be learned.
        encoded_rows: the tokens of each row.
        tokenizer: the base's tokenizer.
        kind: the kind of model of the base.
        where: the name of the rows, such as "agnews train".
    """
    answers = [encoded.learned for encoded in encoded_rows]
    prompts = _unknown_prompts(encoded_rows, tokenizer)
    lines = [
        *_unknown(answers, tokenizer, where, "an answer"),
        *_unknown(prompts, tokenizer, where, "more than half of a prompt"),
    ]
    if kind == "causal":
        lines += _merged(encoded_rows, where)
        lines += _parted(encoded_rows, where)
        lines += _endless(rows, encoded_rows, tokenizer, where)
    return lines


def _unknown_prompts(
    encoded_rows: Sequence[Tokens], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """Return the ids of each prompt if more than half of them are unknown, else an empty list."""
    unknown: Any = tokenizer.unk_token_id
    added = set(tokenizer.all_special_ids) - {unknown}
    prompts = [[i for i in encoded.prompt if i not in added] for encoded in encoded_rows]
    return [ids if 2 * ids.count(unknown) > len(ids) else [] for ids in prompts]


def _unknown(
    ids: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, where: str, part: str
) -> list[str]:
    unknown = tokenizer.unk_token_id
    affected = [i for i, row in enumerate(ids) if unknown is not None and unknown in row]
    if not affected:
        return []
    return [
        f"{where}: {len(affected)} of {len(ids)} rows (first: row {affected[0] + 1}) have unknown "
        f"tokens ({tokenizer.unk_token}) in {part}: the base cannot tell these words apart; write "
        "them differently, with a space between prompt and completion, or use another base"
    ]


def _merged(encoded_rows: Sequence[Tokens], where: str) -> list[str]:
    affected = [i for i, row in enumerate(encoded_rows) if row.merged]
    if not affected:
        return []
    return [
        f"{where}: in {len(affected)} of {len(encoded_rows)} rows (first: row {affected[0] + 1}) a "
        "token spans the end of the prompt, so that the answer follows other tokens in training "
        "than in scoring; end the prompt (or the template's generation prompt) without a space, "
        "and begin the answer with one"
    ]


def _parted(encoded_rows: Sequence[Tokens], where: str) -> list[str]:
    affected = [i for i, row in enumerate(encoded_rows) if row.parted]
    if not affected:
        return []
    return [
        f"{where}: in {len(affected)} of {len(encoded_rows)} rows (first: row {affected[0] + 1}) "
        "the chat template's generation prompt does not fit the answer that is learned (because "
        "the answer has no reasoning, follows tool calls that the template later drops, or begins "
        "after a text that the template writes outside of its {% generation %} marks), so that the "
        "answer follows other tokens in training than in scoring; set "
        "chat_template_kwargs, such as enable_thinking, so that both agree"
    ]


def _endless(
    rows: Sequence[Row],
    encoded_rows: Sequence[Tokens],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
) -> list[str]:
    vocabulary: Any = tokenizer.get_added_vocab()  # type: ignore[operator]
    added = set(vocabulary.values())
    for number, (row, encoded_row) in enumerate(zip(rows, encoded_rows, strict=True), 1):
        ending = encoded_row.learned[-3:]
        if is_chat(row) and not added & set(ending):
            return [
                f"{where}, row {number}: the chat template writes no end token in the assistant's "
                "turn, so the model would not learn to stop; add one to the template"
            ]
    return []
