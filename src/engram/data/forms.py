"""What a record says, as a row: other tools' forms, the columns beside them, and what is refused.

Nothing is dropped in silence: a column makes a part of the row, or it is refused with what to
write, or it is named among those that were left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engram.data.columns import (
    ANSWERS,
    ASKED,
    PREFERENCES,
    SYSTEM,
    check_left_out,
    is_numbered,
    label_columns,
    mapping,
    plain,
)
from engram.data.messages import (
    check_whole,
    checked_messages,
    checked_text,
    checked_tools,
    from_json,
    plain_json,
)
from engram.errors import EngramError


Row = dict[str, Any]
CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")


@dataclass
class Notes:
    """What is said once of a file: the columns that were left out, and what was read as what."""

    left_out: dict[str, None] = field(default_factory=dict)
    labelled: bool = False

    def lines(self, where: str) -> tuple[str, ...]:
        lines = []
        if self.left_out:
            names = ", ".join(self.left_out)
            lines.append(f"{where}: left out, as they are no part of a row: {names}")
        if self.labelled:
            lines.append(f"{where}: text beside label is read as prompt and completion")
        return tuple(lines)


def as_row(raw: Any, where: str, notes: Notes | None = None) -> Row:
    """One checked row with the keys of its format alone; `where` begins the error line.

    `notes` collects what is left out, and is to be said.
    """
    if not isinstance(raw, Mapping):
        raise EngramError(
            f'{where}: expected an object such as {{"prompt": ..., "completion": ...}}'
        )
    # A table gives every record every column: an empty cell is an absent key.
    record = {key: value for key, value in raw.items() if value is not None}
    _refuse(record, where)
    row, used = _row(record, where)
    row |= _beside(record, row, used, where)
    check_left_out(record, row, used, where)
    if notes is not None:
        others = [str(key) or "(one without a name)" for key in record if key not in used]
        notes.left_out |= dict.fromkeys(others)
        notes.labelled |= "label" in used
    return row


def _refuse(record: Mapping[str, Any], where: str) -> None:
    """Raise EngramError for what is no supervised row of text."""
    preference = next((key for key in record if PREFERENCES.fullmatch(plain(key))), None)
    if preference:
        raise EngramError(
            f"{where}: {preference} makes it a row of preferences, which are not learned; write "
            "prompt and completion, or messages, with the answer to learn"
        )
    medium = next((key for key in MEDIA if key in record and record[key] not in ("", [], {})), None)
    if medium:
        raise EngramError(
            f"{where}: {medium} is not learned, only text is; take the column out if the text is "
            "enough"
        )


def _row(record: Mapping[str, Any], where: str) -> tuple[Row, set[str]]:
    """The row of the one form that a record has, and the columns it is made of."""
    talks = [key for key in CONVERSATIONS if _is_talk(record, key)]
    if talks:
        return _conversation(record, talks, where)
    if ("prompt" in record or "completion" in record) and _is_asked_and_answered(record):
        used = {"prompt", "completion", "references"}
        row = _prompt_completion(record, where)
    elif "instruction" in record and ("output" in record or not label_columns(record)):
        used = {"instruction", "input", "output", "references"}
        row = _alpaca(record, where)
    elif "text" in record:
        return _text(record, where)
    else:
        found = ", ".join(map(str, record)) or "none"
        if not record:
            raise EngramError(
                f"{where}: expected prompt and completion, messages, or text; its keys: none"
            )
        if "input_ids" in record:
            raise EngramError(
                f"{where}: input_ids are tokens already; give the text, the base makes its tokens"
            )
        raise EngramError(
            f"{where}: expected prompt and completion, messages, or text; its keys: {found}; make "
            f"rows of them with {mapping(record, is_numbered(record))} beside path or hub"
        )
    _check_rendering(record, row, where)
    return row, used


def _is_asked_and_answered(record: Mapping[str, Any]) -> bool:
    """Whether prompt and completion are there, or nothing else that could stand for the other."""
    others = ASKED if "completion" in record else ANSWERS
    return {"prompt", "completion"} <= set(record) or not any(
        plain(key) in others for key in record
    )


def _is_talk(record: Mapping[str, Any], key: str) -> bool:
    """Whether a column holds a conversation; a dialogue may be a text as well."""
    if key not in record:
        return False
    if key in ("messages", "conversations"):
        return True
    return isinstance(record[key], list)


def _conversation(
    record: Mapping[str, Any], columns: list[str], where: str
) -> tuple[Row, set[str]]:
    made = [checked_messages(record[key], f"{where}: {key}", whole=True) for key in columns]
    messages = made[0]
    for key, other in zip(columns, made, strict=True):
        if other != messages:
            raise EngramError(
                f"{where}: {columns[0]} and {key} hold two conversations; take one of them out"
            )
    for key, first in (("prompt", True), ("completion", False), ("instruction", True)):
        if key in record and not _says(messages, record[key], first):
            raise EngramError(
                f"{where}: {key} stands beside {columns[0]} and says something else; take one of "
                "them out"
            )
    row = {"messages": messages}
    _check_rendering(record, row, where)
    return row, {*columns, "references"}


def _says(messages: list[Row], value: Any, first: bool) -> bool:
    """Whether a column repeats what a conversation says first, or last."""
    if isinstance(value, list):
        end = messages[: len(value)] if first else messages[-len(value) :]
        said = [(m.get("role"), m.get("content")) for m in value if isinstance(m, Mapping)]
        return said == [(m["role"], m.get("content")) for m in end]
    spoken = [m.get("content") for m in messages if m["role"] == ("user" if first else "assistant")]
    return bool(spoken) and str(value).strip() == str(spoken[0 if first else -1]).strip()


def _alpaca(record: Mapping[str, Any], where: str) -> Row:
    prompt = checked_text(record["instruction"], f"{where}: instruction")
    if record.get("input"):
        prompt += "\n" + checked_text(record["input"], f"{where}: input")
    said, others = _completion(record.get("output"), f"{where}: output")
    return {"prompt": prompt, "completion": said, **others}


def _prompt_completion(record: Mapping[str, Any], where: str) -> Row:
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
            raise EngramError(
                f'{where}: {key} must be a non-empty list of {{"role": ..., "content": ...}}, as '
                "prompt and completion are both text or both messages"
            )
    prompt = checked_messages(prompt, f"{where}: prompt")
    completion = checked_messages(completion, f"{where}: completion")
    check_whole(prompt + completion, where)
    return {"prompt": prompt, "completion": completion, **others}


def _completion(value: Any, where: str) -> tuple[str, Row]:
    """The text to learn; of a list it is the first, the others are right as well."""
    if not isinstance(value, list):
        return checked_text(value, where), {}
    texts = [checked_text(one, where) for one in value]
    if not texts:
        raise EngramError(f"{where} is an empty list; give at least one text")
    return texts[0], {"references": texts[1:]}


def _text(record: Mapping[str, Any], where: str) -> tuple[Row, set[str]]:
    """A text that is learned whole, or beside one label in words what the label is given to."""
    labels = label_columns(record)
    if not labels:
        return {"text": checked_text(record["text"], f"{where}: text")}, {"text"}
    label = record["label"] if labels == ["label"] else None
    if isinstance(label, str) and not is_numbered(record):
        text = checked_text(record["text"], f"{where}: text")
        said = checked_text(label, f"{where}: label")
        return {"prompt": text, "completion": said}, {"text", "label", "references"}
    raise EngramError(
        f"{where}: {', '.join(labels)} beside text: is the text learned, or what stands beside it? "
        f"Write {mapping(record, is_numbered(record))} beside path or hub, or take "
        f"{'it' if len(labels) == 1 else 'them'} out to learn the text"
    )


def _check_rendering(record: Mapping[str, Any], row: Row, where: str) -> None:
    """A text beside a whole row is left out if it is that row, written out, or a part of it."""
    text = record.get("text")
    if not text:
        return
    if "messages" in row:
        parts = [message.get("content", "") for message in row["messages"]]
    else:
        parts = [record.get(key) for key in ("prompt", "completion", "instruction", "output")]
    said = [part.strip() for part in parts if isinstance(part, str)]
    if isinstance(text, str) and any(text.strip() in part for part in said):
        return  # the row has been made of it
    if not isinstance(text, str) or not all(part in text for part in said):
        raise EngramError(
            f"{where}: text says something else than the row beside it; take text out, or write "
            f"{mapping(record)} beside path or hub"
        )


def _beside(record: Mapping[str, Any], row: Row, used: set[str], where: str) -> Row:
    """What the columns beside a form add to its row, which may change as well; all JSON."""
    added: Row = {}
    _set_the_scene(record, row, used, where)
    chat = "messages" in row or isinstance(row.get("prompt"), list)
    tools = from_json(record.get("tools"), f"{where}: tools")
    if tools:
        added["tools"] = checked_tools(tools, f"{where}: tools")
    settings = from_json(record.get("chat_template_kwargs"), f"{where}: chat_template_kwargs")
    if settings:
        if not isinstance(settings, Mapping):
            raise EngramError(f"{where}: chat_template_kwargs must be a mapping")
        added["chat_template_kwargs"] = plain_json(settings, f"{where}: chat_template_kwargs")
    for key in ("tools", "chat_template_kwargs"):
        if key in added and not chat:
            raise EngramError(
                f"{where}: {key} go to the chat template, and this row is plain text; write "
                "messages, or take the column out"
            )
        if key in record:
            used.add(key)
    if "references" in used:
        added |= _references(record, row, where)
    elif record.get("references"):
        raise EngramError(f"{where}: references are of an answer, and a row of text has none")
    return added


def _set_the_scene(record: Mapping[str, Any], row: Row, used: set[str], where: str) -> None:
    """Put `system` and `history` before what is asked, where they say something."""
    columns = [key for key in SYSTEM if key in record]
    used.update(columns)
    texts = {key: record[key] for key in columns if record[key] != ""}
    history = from_json(record.get("history"), f"{where}: history")
    used.update({"history"} & set(record))
    if not texts and not history:
        return
    if "text" in row:
        named = ", ".join([*texts, *(["history"] if history else [])])
        raise EngramError(f"{where}: {named} beside a text; write messages instead")
    before = [
        {"role": "system", "content": checked_text(text, f"{where}: {key}")}
        for key, text in texts.items()
    ]
    if any(message != before[0] for message in before):
        raise EngramError(f"{where}: {' and '.join(texts)} differ; take one of them out")
    _as_messages(row)
    key = "messages" if "messages" in row else "prompt"
    asked = row[key]
    if before and asked[0]["role"] in ("system", "developer"):
        if asked[0]["content"].strip() != before[0]["content"].strip():
            raise EngramError(
                f"{where}: {next(iter(texts))} and the system's message say different things; take "
                "one of them out"
            )
        before = []
    front = asked[:1] if asked[0]["role"] in ("system", "developer") else before[:1]
    rest = asked[1:] if asked[0]["role"] in ("system", "developer") else asked
    row[key] = [*front, *_turns(history, f"{where}: history"), *rest]


def _as_messages(row: Row) -> None:
    if "messages" not in row and isinstance(row["prompt"], str):
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        row["completion"] = [{"role": "assistant", "content": row["completion"]}]


def _turns(history: Any, where: str) -> list[Row]:
    """The turns before the question: pairs of question and answer, or messages."""
    if not history:
        return []
    if isinstance(history, list) and all(isinstance(turn, Mapping) for turn in history):
        return checked_messages(history, where)
    pairs = history if isinstance(history, list) else [history]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise EngramError(f"{where} must be a list of [question, answer] pairs")
    return [
        {"role": role, "content": checked_text(text, where)}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _references(record: Mapping[str, Any], row: Row, where: str) -> Row:
    """Further right answers, none twice and none that is the answer itself."""
    given = from_json(record.get("references"), f"{where}: references")
    given = [given] if isinstance(given, str) else given or []
    if not isinstance(given, list):
        raise EngramError(f"{where}: references must be a list of texts")
    texts = [*row.pop("references", []), *given]
    said = row["messages"] if "messages" in row else row["completion"]
    answer = said if isinstance(said, str) else said[-1].get("content")
    checked = [checked_text(text, f"{where}: references") for text in texts]
    others = [text for text in dict.fromkeys(checked) if text != answer]
    return {"references": others} if others else {}
