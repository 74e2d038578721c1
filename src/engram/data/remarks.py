"""What the tokens of rows say that is probably not meant, a line each, told before learning."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from engram.data.causal import CausalRow, causal_prompts, causal_rows
from engram.data.chat import is_chat
from engram.data.rows import Row, answer
from engram.data.special import ids_of
from engram.data.tokens import Kind


def remarks(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, kind: Kind, where: str
) -> list[str]:
    """Unknown tokens, prompts that go on otherwise than they are asked, answers without an end.

    Args:
        rows: rows that can be learned.
        tokenizer: the base's own.
        kind: the family of the base.
        where: what the rows are, such as "agnews train".
    """
    lines = [f"{where}, row {number}" for number in range(1, len(rows) + 1)]
    made = causal_rows(rows, tokenizer, lines) if kind == "causal" else []
    answers = [
        [token for token, of in zip(row.ids, row.learned, strict=True) if of] for row in made
    ]
    if kind == "seq2seq":
        answers = ids_of([answer(row) for row in rows], tokenizer)
    return [
        *_unknown(answers, tokenizer, where, "an answer"),
        *_unknown(_prompts(rows, tokenizer, lines), tokenizer, where, "more than half of a prompt"),
        *_merged(made, where),
        *_parted(made, where),
        *_endless(rows, made, tokenizer, where),
    ]


def _prompts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, lines: Sequence[str]
) -> list[list[int]]:
    """The prompts of which more than half is unknown."""
    asked = [(row, line) for row, line in zip(rows, lines, strict=True) if "text" not in row]
    made = causal_prompts([row for row, _ in asked], tokenizer, [line for _, line in asked])
    unknown: Any = tokenizer.unk_token_id
    return [row.ids if 2 * row.ids.count(unknown) > len(row.ids) else [] for row in made]


def _unknown(
    ids: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, where: str, what: str
) -> list[str]:
    unknown = tokenizer.unk_token_id
    have = [i for i, row in enumerate(ids) if unknown is not None and unknown in row]
    if not have:
        return []
    return [
        f"{where}: {len(have)} of {len(ids)} rows (first: row {have[0] + 1}) have unknown tokens "
        f"({tokenizer.unk_token}) in {what}: the base cannot tell these words apart; write them "
        "otherwise, with a space between prompt and completion, or take another base"
    ]


def _merged(made: Sequence[CausalRow], where: str) -> list[str]:
    have = [i for i, row in enumerate(made) if row.merged]
    if not have:
        return []
    return [
        f"{where}: in {len(have)} of {len(made)} rows (first: row {have[0] + 1}) a token spans the "
        "end of the prompt, so the model learns behind another context than it is asked with; let "
        "the prompt (or the template's generation prompt) end without a space and the answer begin "
        "with one"
    ]


def _parted(made: Sequence[CausalRow], where: str) -> list[str]:
    have = [i for i, row in enumerate(made) if row.parted]
    if not have:
        return []
    return [
        f"{where}: in {len(have)} of {len(made)} rows (first: row {have[0] + 1}) the chat template "
        "asks for another answer than is learned (for one without thoughts, or behind calls that "
        "it leaves out later), so the model learns behind another context than it is asked with; "
        "set chat_template_kwargs, such as enable_thinking, so that both agree"
    ]


def _endless(
    rows: Sequence[Row], made: Sequence[CausalRow], tokenizer: PreTrainedTokenizerBase, where: str
) -> list[str]:
    vocabulary: Any = tokenizer.get_added_vocab()  # type: ignore[operator]
    added = set(vocabulary.values())
    for number, (row, one) in enumerate(zip(rows, made, strict=False), 1):
        ending = [token for token, of in zip(one.ids, one.learned, strict=True) if of][-3:]
        if is_chat(row) and not added & set(ending):
            return [
                f"{where}, row {number}: no end token is learned, as the chat template writes none "
                "in the assistant's turn, so the model would not learn to stop; add it to the "
                "template"
            ]
    return []
