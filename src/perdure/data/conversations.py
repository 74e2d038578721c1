"""Conversations that wait for an answer: the last message of each is the user's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.data.files import read_records
from perdure.data.messages import Message
from perdure.data.rows import Row, as_row
from perdure.errors import PerdureError


UNANSWERED = "?"  # stands where a row of a task has its answer

# A file, the messages of one conversation, or rows with `messages`.
Conversations = str | Path | Sequence[Any]


def unanswered(prompt: str) -> Row:
    """Return the row that asks a plain text.

    Its answer begins with a space, as answers in rows of tasks do, unless the prompt ends in one.
    """
    space = "" if prompt[-1:].isspace() else " "
    return {"prompt": prompt, "completion": space + UNANSWERED}


def waiting(record: Mapping[str, Any], where: str) -> Row:
    """Return the row that asks a conversation, with a placeholder for the answer.

    Args:
        record: a mapping with `messages`, and with what else a row of messages may have.
        where: the beginning of the error line.

    Raises:
        PerdureError: the last message is not the user's, or the record is not a row of messages.
    """
    messages = record.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, Mapping) or last.get("role") != "user":
        raise PerdureError(f"{where}: messages must end with one of the user's, to be answered")
    answer = {"role": "assistant", "content": UNANSWERED}
    return as_row({**record, "messages": [*messages, answer]}, where)  # type: ignore[misc]


def read_conversations(source: Conversations) -> list[Row]:
    """Read conversations as rows that ask them.

    A file of JSON or of JSON lines holds either the messages of one conversation, or rows with
    `messages`. A list in Python holds the same.

    Raises:
        PerdureError: the file cannot be read, there is no conversation in it, or one of them cannot
            be answered.
    """
    if isinstance(source, str | Path):
        name, records = str(source), [record for _, record in read_records(Path(source))]
    else:
        name, records = "messages", list(source)
    if not records:
        raise PerdureError(f"{name}: there are no messages; give at least one of the user's")
    if all(isinstance(record, Mapping) and "role" in record for record in records):
        return [waiting({"messages": records}, name)]
    places = [f"{name}, row {number}" for number in range(1, len(records) + 1)]
    return [waiting(_record(raw, place), place) for raw, place in zip(records, places, strict=True)]


def with_system(row: Row, system: str, where: str) -> Row:
    """Return a row of messages with a system prompt before its messages.

    Raises:
        PerdureError: it has one already.
    """
    messages: list[Message] = row["messages"]
    if messages[0]["role"] in ("system", "developer"):
        raise PerdureError(
            f"{where}: the messages already have a system prompt; remove it, or leave out --system"
        )
    return {**row, "messages": [{"role": "system", "content": system}, *messages]}


def _record(raw: Any, where: str) -> Mapping[str, Any]:
    record = {"messages": raw} if isinstance(raw, list) else raw
    if not isinstance(record, Mapping) or "messages" not in record:
        raise PerdureError(
            f'{where}: expected messages; write {{"role": ..., "content": ...}} objects in one '
            'list, or rows such as {"messages": [...]}'
        )
    return record
