"""What stands in messages and is not written by the base's chat template, so it is not learned."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from engram.data.chat import conversation, is_chat, write
from engram.data.rows import Row
from engram.errors import EngramError


TRIED = 20  # rows a key: a template may write it in some places and not in others
OF_THE_PROJECT = ("role", "content", "weight", "train")  # which no template is meant to write


def unwritten(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, where: str) -> list[str]:
    """A line for each key of chat rows that changes nothing in what the template writes.

    Args:
        rows: rows that can be learned.
        tokenizer: the base's own.
        where: what the rows are, such as "agnews train".

    Raises:
        EngramError: the template does not write the tool calls of a turn without content, or no
            content at all, so that there is nothing to learn.
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
            raise EngramError(
                f"{where}, row {empty[0]}: the base's chat template does not write tool_calls, so "
                "the turn would be learned as an empty answer; take a base whose template knows "
                "tools, or write the call into the content"
            )
        lines.append(
            f"{where}: the base's chat template does not write {key} ({len(numbers)} of "
            f"{len(rows)} rows, first: row {numbers[0]}), so the model learns the rows without it; "
            "take a base whose template does, or write it into the content"
        )
    for number, row in chats[:1]:
        _check_content(row, tokenizer, f"{where}, row {number}")
    return lines


def _keys(row: Row) -> set[str]:
    """The keys of a row that a template may or may not write."""
    keys = {key for message in conversation(row) for key in message if message[key]}
    return (keys - set(OF_THE_PROJECT)) | ({"tools"} if row.get("tools") else set())


def _written(row: Row, key: str, tokenizer: PreTrainedTokenizerBase, where: str) -> bool:
    """Whether the template writes the conversation otherwise without the key."""
    said = conversation(row)
    without = [{k: v for k, v in message.items() if k != key} for message in said]
    for message in without:  # a template may add the content to a text
        message.setdefault("content", "")
    bare = {k: v for k, v in row.items() if k != key}
    try:
        return write(said, row, tokenizer, where) != write(without, bare, tokenizer, where)
    except EngramError:  # it cannot do without
        return True


def _calls_alone(row: Row) -> bool:
    return any(turn.get("tool_calls") and not turn.get("content") for turn in _answers(row))


def _answers(row: Row) -> Iterator[dict[str, Any]]:
    return (message for message in conversation(row) if message["role"] == "assistant")


def _check_content(row: Row, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    said = conversation(row)
    other = [{**m, "content": "qxzOTHERzxq"} if m.get("content") else m for m in said]
    if any(turn.get("content") for turn in _answers(row)) and not _differs(
        said, other, row, tokenizer, where
    ):
        raise EngramError(
            f"{where}: the base's chat template writes nothing of the messages' text, so there is "
            "nothing to learn; give the tokenizer a template for text"
        )


def _differs(
    said: list[Any], other: list[Any], row: Row, tokenizer: PreTrainedTokenizerBase, where: str
) -> bool:
    try:
        return write(said, row, tokenizer, where) != write(other, row, tokenizer, where)
    except EngramError:
        return True
