"""Warnings about parts of messages that the base's chat template does not write.

A part that is not written is not learned.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from perdure.data.chat import conversation, write
from perdure.data.columns import is_chat
from perdure.data.rows import Row
from perdure.errors import PerdureError


TRIED = 20  # rows rendered for each key, because a template may write it only in some places
OF_THE_PROJECT = ("role", "content", "weight", "train")  # keys that are not checked


def unwritten(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, where: str) -> list[str]:
    """Return a warning for each key of chat rows that does not change the template's text.

    Args:
        rows: rows that can be learned.
        tokenizer: the base's tokenizer.
        where: the name of the rows, such as "agnews train".

    Raises:
        PerdureError: the template does not write the tool calls of a turn without content, or it
            writes no content at all, so that there is nothing to learn.
    """
    chats = [(number, row) for number, row in enumerate(rows, 1) if is_chat(row)]
    lines = []
    for key in sorted({key for _, row in chats for key in _keys(row)}):
        numbers = [number for number, row in chats if key in _keys(row)]
        tried = islice(((n, row) for n, row in chats if key in _keys(row)), TRIED)
        if any(_written(row, key, tokenizer, f"{where}, row {n}") for n, row in tried):
            continue
        empty = [n for n, row in chats if key == "tool_calls" and _calls_alone(row)]
        if empty:
            raise PerdureError(
                f"{where}, row {empty[0]}: the base's chat template does not write tool_calls, so "
                "the turn would be learned as an empty answer; use a base whose template supports "
                "tools, or write the call into the content"
            )
        lines.append(
            f"{where}: the base's chat template does not write {key} ({len(numbers)} of "
            f"{len(rows)} rows, first: row {numbers[0]}), so the model learns the rows without it; "
            "use a base whose template writes it, or write it into the content"
        )
    for number, row in chats[:1]:
        _check_content(row, tokenizer, f"{where}, row {number}")
    return lines


def _keys(row: Row) -> set[str]:
    """Return the keys of a row that a template may or may not write."""
    keys = {key for message in conversation(row) for key in message if message[key]}
    return (keys - set(OF_THE_PROJECT)) | ({"tools"} if row.get("tools") else set())


def _written(row: Row, key: str, tokenizer: PreTrainedTokenizerBase, where: str) -> bool:
    """Return whether the template's text changes when the key is removed."""
    messages = conversation(row)
    without = [{k: v for k, v in message.items() if k != key} for message in messages]
    for message in without:  # templates may concatenate the content, so it must be a string
        message.setdefault("content", "")
    bare = {k: v for k, v in row.items() if k != key}
    try:
        return write(messages, row, tokenizer, where) != write(without, bare, tokenizer, where)
    except PerdureError:  # the template requires the key
        return True


def _calls_alone(row: Row) -> bool:
    return any(turn.get("tool_calls") and not turn.get("content") for turn in _answers(row))


def _answers(row: Row) -> Iterator[dict[str, Any]]:
    return (message for message in conversation(row) if message["role"] == "assistant")


def _check_content(row: Row, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    messages = conversation(row)
    changed = [{**m, "content": "qxzOTHERzxq"} if m.get("content") else m for m in messages]
    if any(turn.get("content") for turn in _answers(row)) and not _differs(
        messages, changed, row=row, tokenizer=tokenizer, where=where
    ):
        raise PerdureError(
            f"{where}: the base's chat template does not write the messages' text, so there is "
            "nothing to learn; give the tokenizer a template for text"
        )


def _differs(
    messages: list[Any],
    others: list[Any],
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    where: str,
) -> bool:
    try:
        return write(messages, row, tokenizer, where) != write(others, row, tokenizer, where)
    except PerdureError:
        return True
