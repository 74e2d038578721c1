"""Warnings about parts of messages that the base's chat template does not write.

A part that is not written is not learned.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from perdure.data.chat import conversation, write
from perdure.data.columns import is_chat
from perdure.data.rows import Row
from perdure.errors import PerdureError


TRIED = 20  # rows rendered for each key and role; a template may write them in some places only
OF_THE_PROJECT = ("role", "content", "weight", "train")  # keys that are not checked


def unwritten(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, where: str) -> list[str]:
    """Return a warning for each key and each role of chat rows that the template does not write.

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
        having = [(number, row) for number, row in chats if key in _keys(row)]
        tried = _spread(having)
        lost = [n for n, row in tried if not _written(row, key, tokenizer, f"{where}, row {n}")]
        if not lost:
            continue
        if len(lost) < len(tried):
            lines.append(
                f"{where}: the base's chat template does not write {key} in {len(lost)} of "
                f"{len(tried)} rows that have it and were tried (first: row {lost[0]}), so the "
                "model learns these without it; use a base whose template writes it, or write it "
                "into the content"
            )
            continue
        empty = [n for n, row in chats if key == "tool_calls" and _calls_alone(row)]
        if empty:
            raise PerdureError(
                f"{where}, row {empty[0]}: the base's chat template does not write tool_calls, so "
                "the turn would be learned as an empty answer; use a base whose template supports "
                "tools, or write the call into the content"
            )
        lines.append(
            f"{where}: the base's chat template does not write {key} ({len(having)} of "
            f"{len(rows)} rows, first: row {having[0][0]}), so the model learns the rows without "
            "it; use a base whose template writes it, or write it into the content"
        )
    for role in sorted({role for _, row in chats for role in _roles(row)}):
        having = [(number, row) for number, row in chats if role in _roles(row)]
        tried = _spread(having)
        lost = [n for n, row in tried if _loses(row, role, tokenizer, f"{where}, row {n}")]
        if lost:
            lines.append(
                f"{where}: the base's chat template does not write the turns of the role {role} "
                f"({len(lost)} of {len(tried)} rows that have them and were tried, first: row "
                f"{lost[0]}), so the model learns the rows without them; use a base whose template "
                "writes them, or write their text into the turn of the user"
            )
    for number, row in chats[:1]:
        _check_content(row, tokenizer, f"{where}, row {number}")
    return lines


def unwritten_roles(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, where: str
) -> list[str]:
    """Return a warning for each role whose turns the template leaves out when the rows are asked.

    Args:
        rows: rows that are asked, not learned.
        tokenizer: the base's tokenizer, with a chat template.
        where: the beginning of an error line.
    """
    left_out = {role for row in rows for role in _roles(row) if _loses(row, role, tokenizer, where)}
    return [
        f"warning: the base's chat template does not write the turns of the role {role}, so the "
        "model does not read them; write their text into the turn of the user"
        for role in sorted(left_out)
    ]


def _spread(rows: Sequence[tuple[int, Row]]) -> list[tuple[int, Row]]:
    """Return at most TRIED of the rows, evenly spread, the first one among them."""
    return [rows[i * len(rows) // min(TRIED, len(rows))] for i in range(min(TRIED, len(rows)))]


def _roles(row: Row) -> set[str]:
    """Return the roles, other than the assistant's, whose turns have a text."""
    messages = conversation(row)
    return {m["role"] for m in messages if m.get("content") and m["role"] != "assistant"}


def _loses(row: Row, role: str, tokenizer: PreTrainedTokenizerBase, where: str) -> bool:
    """Return whether the template leaves out any turn of a role."""
    messages = conversation(row)
    for i, message in enumerate(messages):
        if message["role"] == role and message.get("content"):
            changed = [*messages[:i], {**message, "content": "qxzOTHERzxq"}, *messages[i + 1 :]]
            if not _differs(messages, changed, row=row, tokenizer=tokenizer, where=where):
                return True
    return False


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
