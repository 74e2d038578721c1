"""Converting records to rows: the formats of other tools, and further columns.

No column is dropped silently. It becomes a part of the row, or it is refused with an error that
says what to write instead, or it is listed among the columns that were left out.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perdure.data.columns import (
    ANSWERS,
    ASKED,
    LABELS,
    PREFERENCES,
    SYSTEM,
    Row,
    check_left_out,
    is_numbered,
    label_columns,
    mapping,
    plain,
)
from perdure.data.messages import (
    check_whole,
    checked_messages,
    checked_text,
    checked_tools,
    from_json,
    plain_json,
)
from perdure.errors import PerdureError


CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
MOST_COLUMNS = 1000  # of a record


@dataclass
class Notes:
    """Notes on how a file was read, each given once for the whole file.

    Args:
        left_out: the columns that are not part of a row, in order.
        labelled: whether a text with a label was read as prompt and completion.
    """

    left_out: dict[str, None] = field(default_factory=dict)
    labelled: bool = False

    def lines(self, where: str) -> tuple[str, ...]:
        lines = []
        if self.left_out:
            names = ", ".join(self.left_out)
            lines.append(f"{where}: left out, as they are not part of a row: {names}")
        if self.labelled:
            lines.append(
                f"{where}: text and label are read as prompt and completion, with nothing "
                "between them; write the columns prompt and completion to put a space or a line "
                "break there"
            )
        return tuple(lines)


PLAIN = {"prompt", "completion"}  # a record of these two texts, as most are, needs no other check


def as_row(raw: Any, where: str, notes: Notes | None = None) -> Row:
    """Convert a record to a checked row that has only the keys of its format.

    Args:
        raw: the record, a mapping in any of the formats that are known.
        where: the beginning of the error line.
        notes: collects the columns that are left out, if given.

    Raises:
        PerdureError: the record is not a row that can be learned.
    """
    if not isinstance(raw, Mapping):
        raise PerdureError(
            f'{where}: expected an object such as {{"prompt": ..., "completion": ...}}'
        )
    if set(raw) == PLAIN and all(isinstance(text, str) for text in raw.values()):
        return {key: checked_text(raw[key], f"{where}: {key}") for key in ("prompt", "completion")}
    # In a table every record has every column, so an empty cell means an absent key.
    record = {key: value for key, value in raw.items() if value is not None}
    if len(record) > MOST_COLUMNS:
        raise PerdureError(
            f"{where}: has {len(record)} columns, and the limit is {MOST_COLUMNS}; keep those of "
            "which rows are made"
        )
    _refuse(record, where)
    row, used = _row(record, where)
    empty = [key for key, value in raw.items() if value is None and plain(key) in LABELS]
    if empty and "text" in row:
        raise PerdureError(
            f"{where}: {empty[0]} is empty; fill it in, remove the row, or remove the column to "
            "learn the text itself"
        )
    row |= _beside(record, row, used, where)
    check_left_out(record, row, used, where)
    if notes is not None:
        unused = [str(key) or "(one without a name)" for key in record if key not in used]
        notes.left_out |= dict.fromkeys(unused)
        notes.labelled |= "label" in used
    return row


def _refuse(record: Mapping[str, Any], where: str) -> None:
    """Raise PerdureError for a record that is not a supervised row of text."""
    preference = next((key for key in record if PREFERENCES.fullmatch(plain(key))), None)
    if preference:
        raise PerdureError(
            f"{where}: {preference} makes it a row of preferences, which cannot be learned; write "
            "prompt and completion, or messages, with the answer to learn"
        )
    medium = next((key for key in MEDIA if key in record and record[key] not in ("", [], {})), None)
    if medium:
        raise PerdureError(
            f"{where}: {medium} is not learned, only text is; remove the column if the text is "
            "enough"
        )


def _row(record: Mapping[str, Any], where: str) -> tuple[Row, set[str]]:
    """Return the row in the format that the record has, and the columns that it is made of."""
    conversations = [key for key in CONVERSATIONS if _is_conversation(record, key)]
    if conversations:
        return _conversation(record, conversations, where)
    if ("prompt" in record or "completion" in record) and _has_prompt_and_completion(record):
        used = {"prompt", "completion", "references"}
        row = _prompt_completion(record, where)
    elif "instruction" in record and ("output" in record or not label_columns(record)):
        used = {"instruction", "input", "output", "references"}
        row = _alpaca(record, where)
    elif "text" in record:
        return _text(record, where)
    else:
        if not record:
            raise PerdureError(
                f"{where}: expected prompt and completion, messages, or text; its keys: none"
            )
        if "input_ids" in record:
            raise PerdureError(
                f"{where}: input_ids are already tokens; give the text, which the base's tokenizer "
                "will encode"
            )
        keys = ", ".join(map(str, record))
        raise PerdureError(
            f"{where}: expected prompt and completion, messages, or text; its keys: {keys}; make "
            f"rows of them with {mapping(record, is_numbered(record))} next to path or hub"
        )
    _check_rendering(record, row, where)
    return row, used


def _has_prompt_and_completion(record: Mapping[str, Any]) -> bool:
    """Return whether a record has a prompt and a completion.

    A record that has only one of them also counts, unless another column could be the other one.
    """
    others = ASKED if "completion" in record else ANSWERS
    return {"prompt", "completion"} <= set(record) or not any(
        plain(key) in others for key in record
    )


def _is_conversation(record: Mapping[str, Any], key: str) -> bool:
    """Return whether a column holds a conversation; a column such as `dialogue` may hold text."""
    if key not in record:
        return False
    if key in ("messages", "conversations"):
        return True
    return isinstance(record[key], list)


def _conversation(
    record: Mapping[str, Any], columns: list[str], where: str
) -> tuple[Row, set[str]]:
    conversations = [
        checked_messages(record[key], f"{where}: {key}", whole=True) for key in columns
    ]
    messages = conversations[0]
    for key, conversation in zip(columns, conversations, strict=True):
        if conversation != messages:
            raise PerdureError(
                f"{where}: {columns[0]} and {key} hold two conversations; remove one of them"
            )
    for key, first in (("prompt", True), ("completion", False), ("instruction", True)):
        if key in record and not _says(messages, record[key], first):
            raise PerdureError(f"{where}: {key} and {columns[0]} differ; remove one of them")
    row = {"messages": messages}
    _check_rendering(record, row, where)
    return row, {*columns, "references"}


def _says(messages: list[Row], value: Any, first: bool) -> bool:
    """Return whether a column repeats the first messages of a conversation, or the last ones.

    A column of text is compared with the first message of the user, or the last of the assistant.
    """
    if isinstance(value, list):
        end = messages[: len(value)] if first else messages[-len(value) :]
        repeated = [(m.get("role"), m.get("content")) for m in value if isinstance(m, Mapping)]
        return repeated == [(m["role"], m.get("content")) for m in end]
    role = "user" if first else "assistant"
    contents = [message.get("content") for message in messages if message["role"] == role]
    return bool(contents) and str(value).strip() == str(contents[0 if first else -1]).strip()


def _alpaca(record: Mapping[str, Any], where: str) -> Row:
    prompt = checked_text(record["instruction"], f"{where}: instruction")
    if record.get("input") not in (None, ""):
        prompt += "\n" + checked_text(record["input"], f"{where}: input")
    completion, others = _completion(record.get("output"), f"{where}: output")
    return {"prompt": prompt, "completion": completion, **others}


def _prompt_completion(record: Mapping[str, Any], where: str) -> Row:
    for key in ("prompt", "completion"):
        near = difflib.get_close_matches(key, map(str, record), n=1)
        if key not in record and near:
            raise PerdureError(f"{where}: {key} is missing; is {near[0]!r} meant? rename it")
    prompt, (completion, others) = record.get("prompt"), (record.get("completion"), {})
    if isinstance(completion, list) and (not completion or isinstance(completion[0], str)):
        completion, others = _completion(completion, f"{where}: completion")
        if isinstance(prompt, list):
            completion = [{"role": "assistant", "content": completion}]
    if not isinstance(prompt, list) and not isinstance(completion, list):
        prompt = checked_text(prompt, f"{where}: prompt")
        completion = checked_text(completion, f"{where}: completion")
        return {"prompt": prompt, "completion": completion, **others}
    for key, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, list):
            raise PerdureError(
                f'{where}: {key} must be a non-empty list of {{"role": ..., "content": ...}}, as '
                "prompt and completion are both text or both messages"
            )
    prompt = checked_messages(prompt, f"{where}: prompt")
    completion = checked_messages(completion, f"{where}: completion")
    check_whole(prompt + completion, where)
    return {"prompt": prompt, "completion": completion, **others}


def _completion(value: Any, where: str) -> tuple[str, Row]:
    """Return the text to learn, and the references: those of a list are all but the first text."""
    if not isinstance(value, list):
        return checked_text(value, where), {}
    texts = [checked_text(text, where) for text in value]
    if not texts:
        raise PerdureError(f"{where} is an empty list; give at least one text")
    return texts[0], {"references": texts[1:]}


def _text(record: Mapping[str, Any], where: str) -> tuple[Row, set[str]]:
    """Return a row of text, or of prompt and completion if the record has one label in words."""
    labels = label_columns(record)
    if not labels:
        return {"text": checked_text(record["text"], f"{where}: text")}, {"text"}
    label = record["label"] if labels == ["label"] else None
    if isinstance(label, str) and not is_numbered(record):
        text = checked_text(record["text"], f"{where}: text")
        completion = checked_text(label, f"{where}: label")
        return {"prompt": text, "completion": completion}, {"text", "label", "references"}
    raise PerdureError(
        f"{where}: it is not clear whether {', '.join(labels)} or text should be learned; "
        f"write {mapping(record, is_numbered(record))} next to path or hub, or remove "
        f"{'it' if len(labels) == 1 else 'them'} to learn the text"
    )


def _check_rendering(record: Mapping[str, Any], row: Row, where: str) -> None:
    """Raise PerdureError for a column `text` that neither contains the row nor is part of it."""
    text = record.get("text")
    if not text:
        return
    if "messages" in row:
        parts = [message.get("content", "") for message in row["messages"]]
    else:
        parts = [record.get(key) for key in ("prompt", "completion", "instruction", "output")]
    row_texts = [part.strip() for part in parts if isinstance(part, str)]
    if isinstance(text, str) and any(text.strip() in row_text for row_text in row_texts):
        return  # the row was made from this text
    if not isinstance(text, str) or not all(row_text in text for row_text in row_texts):
        raise PerdureError(
            f"{where}: text differs from the other columns of the row; remove text, or write "
            f"{mapping(record)} next to path or hub"
        )


def _beside(record: Mapping[str, Any], row: Row, used: set[str], where: str) -> Row:
    """Return the keys that further columns add to a row: tools, template settings, references.

    Changes `row` (by `system` and `history`) and adds the columns that it reads to `used`.
    """
    added: Row = {}
    _add_context(record, row, used, where)
    chat = "messages" in row or isinstance(row.get("prompt"), list)
    tools = from_json(record.get("tools"), f"{where}: tools")
    if tools:
        added["tools"] = checked_tools(tools, f"{where}: tools")
    settings = from_json(record.get("chat_template_kwargs"), f"{where}: chat_template_kwargs")
    if settings:
        if not isinstance(settings, Mapping):
            raise PerdureError(f"{where}: chat_template_kwargs must be a mapping")
        added["chat_template_kwargs"] = plain_json(settings, f"{where}: chat_template_kwargs")
    for key in ("tools", "chat_template_kwargs"):
        if key in added and not chat:
            raise PerdureError(
                f"{where}: {key} go to the chat template, but this row is plain text; write "
                "messages, or remove the column"
            )
        if key in record:
            used.add(key)
    if "references" in used:
        added |= _references(record, row, where)
    elif record.get("references"):
        raise PerdureError(f"{where}: references belong to an answer, but a row of text has none")
    return added


def _add_context(record: Mapping[str, Any], row: Row, used: set[str], where: str) -> None:
    """Put the columns `system` and `history`, unless they are empty, before the row's messages."""
    columns = [key for key in SYSTEM if key in record]
    used.update(columns)
    texts = {key: record[key] for key in columns if record[key] != ""}
    history = from_json(record.get("history"), f"{where}: history")
    used.update({"history"} & set(record))
    if not texts and not history:
        return
    if "text" in row:
        columns = [*texts, *(["history"] if history else [])]
        raise PerdureError(
            f"{where}: {', '.join(columns)} cannot be used with a text; write messages instead"
        )
    systems = [
        {"role": "system", "content": checked_text(text, f"{where}: {key}")}
        for key, text in texts.items()
    ]
    if any(message != systems[0] for message in systems):
        raise PerdureError(f"{where}: {' and '.join(texts)} differ; remove one of them")
    _as_messages(row)
    key = "messages" if "messages" in row else "prompt"
    messages = row[key]
    has_system = messages[0]["role"] in ("system", "developer")
    if systems and has_system and messages[0]["content"].strip() != systems[0]["content"].strip():
        raise PerdureError(
            f"{where}: {next(iter(texts))} and the system message say different things; remove one "
            "of them"
        )
    front = messages[:1] if has_system else systems[:1]
    rest = messages[1:] if has_system else messages
    row[key] = [*front, *_turns(history, f"{where}: history"), *rest]


def _as_messages(row: Row) -> None:
    if "messages" not in row and isinstance(row["prompt"], str):
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        row["completion"] = [{"role": "assistant", "content": row["completion"]}]


def _turns(history: Any, where: str) -> list[Row]:
    """Return a history as messages; it is a list of messages or of [question, answer] pairs."""
    if not history:
        return []
    if isinstance(history, list) and all(isinstance(turn, Mapping) for turn in history):
        return checked_messages(history, where)
    pairs = history if isinstance(history, list) else [history]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise PerdureError(f"{where} must be a list of [question, answer] pairs")
    return [
        {"role": role, "content": checked_text(text, where)}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _references(record: Mapping[str, Any], row: Row, where: str) -> Row:
    """Return `references`: further correct answers, without duplicates and the answer itself."""
    column = from_json(record.get("references"), f"{where}: references")
    column = [column] if isinstance(column, str) else column or []
    if not isinstance(column, list):
        raise PerdureError(f"{where}: references must be a list of texts")
    texts = [*row.pop("references", []), *column]
    completion = row["messages"] if "messages" in row else row["completion"]
    answer = completion if isinstance(completion, str) else completion[-1].get("content")
    checked = [checked_text(text, f"{where}: references") for text in texts]
    others = [text for text in dict.fromkeys(checked) if text != answer]
    return {"references": others} if others else {}
