"""Warnings about the tokens of rows that are probably a mistake, given before learning."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from perdure.data.causal import CausalRow, causal_prompts, causal_rows
from perdure.data.chat import is_chat
from perdure.data.rows import Row, answer
from perdure.data.special import ids_of
from perdure.models.kinds import Kind


def remarks(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, kind: Kind, where: str
) -> list[str]:
    """Return warnings about unknown tokens, prompts that differ in training, and missing ends.

    Args:
        rows: rows that can be learned.
        tokenizer: the base's tokenizer.
        kind: the kind of model of the base.
        where: the name of the rows, such as "agnews train".
    """
    lines = [f"{where}, row {number}" for number in range(1, len(rows) + 1)]
    encoded_rows = causal_rows(rows, tokenizer, lines) if kind == "causal" else []
    answers = [_learned_ids(row) for row in encoded_rows]
    if kind == "seq2seq":
        answers = ids_of([answer(row) for row in rows], tokenizer)
    return [
        *_unknown(answers, tokenizer, where, "an answer"),
        *_unknown(_prompts(rows, tokenizer, lines), tokenizer, where, "more than half of a prompt"),
        *_merged(encoded_rows, where),
        *_parted(encoded_rows, where),
        *_endless(rows, encoded_rows, tokenizer, where),
    ]


def _learned_ids(row: CausalRow) -> list[int]:
    """Return the ids of a row that have a loss."""
    return [token for token, learned in zip(row.ids, row.learned, strict=True) if learned]


def _prompts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, lines: Sequence[str]
) -> list[list[int]]:
    """Return the ids of each prompt if more than half of them are unknown, else an empty list."""
    with_prompt = [(row, line) for row, line in zip(rows, lines, strict=True) if "text" not in row]
    encoded_prompts = causal_prompts(
        [row for row, _ in with_prompt], tokenizer, [line for _, line in with_prompt]
    )
    unknown: Any = tokenizer.unk_token_id
    return [
        prompt.ids if 2 * prompt.ids.count(unknown) > len(prompt.ids) else []
        for prompt in encoded_prompts
    ]


def _unknown(
    ids: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, where: str, what: str
) -> list[str]:
    unknown = tokenizer.unk_token_id
    affected = [i for i, row in enumerate(ids) if unknown is not None and unknown in row]
    if not affected:
        return []
    return [
        f"{where}: {len(affected)} of {len(ids)} rows (first: row {affected[0] + 1}) have unknown "
        f"tokens ({tokenizer.unk_token}) in {what}: the base cannot tell these words apart; write "
        "them differently, with a space between prompt and completion, or use another base"
    ]


def _merged(encoded_rows: Sequence[CausalRow], where: str) -> list[str]:
    affected = [i for i, row in enumerate(encoded_rows) if row.merged]
    if not affected:
        return []
    return [
        f"{where}: in {len(affected)} of {len(encoded_rows)} rows (first: row {affected[0] + 1}) a "
        "token spans the end of the prompt, so the model learns the answer after another context "
        "than the prompt it is asked with; let the prompt (or the template's generation prompt) "
        "end without a space and the answer begin with one"
    ]


def _parted(encoded_rows: Sequence[CausalRow], where: str) -> list[str]:
    affected = [i for i, row in enumerate(encoded_rows) if row.parted]
    if not affected:
        return []
    return [
        f"{where}: in {len(affected)} of {len(encoded_rows)} rows (first: row {affected[0] + 1}) "
        "the chat template's prompt asks for another answer than the one that is learned (one "
        "without reasoning, or one after tool calls that the template later leaves out), so the "
        "model learns the answer after another context than the prompt it is asked with; set "
        "chat_template_kwargs, such as enable_thinking, so that both agree"
    ]


def _endless(
    rows: Sequence[Row],
    encoded_rows: Sequence[CausalRow],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
) -> list[str]:
    vocabulary: Any = tokenizer.get_added_vocab()  # type: ignore[operator]
    added = set(vocabulary.values())
    # `encoded_rows` is empty unless the base is a causal model.
    for number, (row, encoded_row) in enumerate(zip(rows, encoded_rows, strict=False), 1):
        ending = _learned_ids(encoded_row)[-3:]
        if is_chat(row) and not added & set(ending):
            return [
                f"{where}, row {number}: no end token is learned, as the chat template writes none "
                "in the assistant's turn, so the model would not learn to stop; add it to the "
                "template"
            ]
    return []
