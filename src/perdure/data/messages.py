"""Checks of conversations: messages as chat templates take them, with tools, calls and reasoning.

A message keeps every key that a template may read. Content that comes as several parts of text is
joined, because templates write the parts one after another. The `from` and `value` of ShareGPT are
read as `role` and `content`.
"""

import json
from collections.abc import Mapping
from typing import Any

from perdure.errors import PerdureError, nearest
from perdure.parsing import UnreadableError, parse_json


Message = dict[str, Any]
ROLES = {  # other formats' names for the roles of a chat template
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
    "function_call": "assistant",
}
OTHER_ROLES = ("developer", "function", "ipython", "documents", "context")  # in some templates


def checked_text(value: Any, where: str) -> str:
    """Return `value` if it is text and not blank; `where` begins the error line.

    Raises:
        PerdureError: the value is missing, not text, blank, or has half of a surrogate pair.
    """
    if value is None:
        raise PerdureError(f"{where} is missing; every row needs one")
    if not isinstance(value, str):
        raise PerdureError(f"{where} must be text, not {type(value).__name__}; put it in quotes")
    if not value.strip():
        raise PerdureError(f"{where} is empty; fill it in or drop the row")
    return _whole(value, where)


def checked_messages(value: Any, where: str, whole: bool = False) -> list[Message]:
    """Check a list of messages and return it in the form that chat templates take.

    Args:
        value: the list, or its JSON text.
        where: the beginning of the error line.
        whole: whether the list must also pass `check_whole`.

    Raises:
        PerdureError: the value is not a list of messages, a role is unknown, content is not text,
            or a whole conversation has no question, no final answer, or no turn to learn.
    """
    value = from_json(value, where)
    if not isinstance(value, list) or not value:
        raise PerdureError(f'{where} must be a non-empty list of {{"role": ..., "content": ...}}')
    messages = [_message(raw, number, where) for number, raw in enumerate(value, 1)]
    if whole:
        check_whole(messages, where)
    return messages


def check_whole(messages: list[Message], where: str) -> None:
    """Check that a conversation has a question, ends with an answer, and has a turn to learn.

    Raises:
        PerdureError: it does not.
    """
    last = messages[-1]["role"]
    if last != "assistant":
        raise PerdureError(f"{where} must end with the assistant's message, not the {last}'s")
    if len(messages) < 2:
        raise PerdureError(f"{where} must hold a message before the assistant's answer")
    if not any(learned(message) for message in messages):
        raise PerdureError(
            f"{where}: every assistant turn has weight 0 or train false, so nothing is learned; "
            "remove the flag from one of them"
        )


def learned(message: Message) -> bool:
    """Return whether a message has a loss.

    It does if it is the assistant's, its `weight` is not 0 and its `train` is not false.
    """
    return (
        message["role"] == "assistant" and message.get("weight") != 0 and message.get("train", True)
    )


def checked_tools(value: Any, where: str) -> list[Any]:
    """Check the functions that a conversation may call: a list of mappings, or its JSON text.

    Raises:
        PerdureError: the value is not such a list, or not plain JSON.
    """
    value = from_json(value, where)
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise PerdureError(
            f"{where} must be a list of functions, such as JSON schemas, or its JSON"
        )
    return plain_json(value, where)


def from_json(value: Any, where: str) -> Any:
    """Parse a list or a mapping that a table's cell holds as JSON text.

    Returns any other value unchanged.

    Raises:
        PerdureError: a text begins like a list or a mapping but is not JSON.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return parse_json(value)
    except UnreadableError as error:
        raise PerdureError(f"{where} looks like JSON and is not ({error})") from None


def plain_json(value: Any, where: str) -> Any:
    """Return `value` if it can be written as JSON, which every part of a row must be.

    Raises:
        PerdureError: it cannot.
    """
    try:
        _whole(json.dumps(value, allow_nan=False, ensure_ascii=False), where)
    except (TypeError, ValueError) as error:
        if isinstance(error, PerdureError):
            raise
        raise PerdureError(f"{where} is not plain JSON ({error}); write it as text") from None
    return value


def joined(parts: list[Any], where: str) -> str:
    """Join content that comes as a list of parts.

    Raises:
        PerdureError: a part is not text.
    """
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind != "text":
            raise PerdureError(
                f"{where} holds a part of type {kind!r}, but only text is learned; remove the part "
                "or the row"
            )
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise PerdureError(f'{where}: a part must be {{"type": "text", "text": ...}}')
        texts.append(text)
    return "".join(texts)


def _message(raw: Any, number: int, where: str) -> Message:
    at, inside = f"{where}: message {number}", f"{where}: the content of message {number}"
    sharegpt = isinstance(raw, Mapping) and "role" not in raw and "from" in raw
    if sharegpt:
        named = {"from": "role", "value": "content"}
        raw = {named.get(key, key): value for key, value in raw.items()}
    if not isinstance(raw, Mapping) or not isinstance(raw.get("role"), str):
        raise PerdureError(f'{at} must be {{"role": ..., "content": ...}}')
    message = {key: value for key, value in raw.items() if value is not None}
    message["role"] = _role(raw["role"], at, only_known=sharegpt)
    if message.pop("function_call", None):
        raise PerdureError(
            f"{at}: function_call is the older form of tool_calls; write "
            'tool_calls: [{"type": "function", "function": {"name": ..., "arguments": ...}}]'
        )
    _name_learning(message, at)
    content = message.pop("content", None)
    if raw["role"].lower() == "function_call":
        content, message["tool_calls"] = None, _calls(content, at)
    if isinstance(content, list):
        content = joined(content, inside)
    if not message.get("tool_calls"):
        message.pop("tool_calls", None)  # an empty list calls nothing
    for key in message:
        _whole(str(key), f"{at}: a key")
    others = {key: plain_json(message[key], f"{at}: {key}") for key in message if key != "role"}
    message = {"role": message["role"]}
    if message["role"] == "tool" and content == "":  # a tool may return nothing
        message["content"] = content
    # Every template treats null as empty.
    elif content in (None, "", []) and "tool_calls" in others:
        message["content"] = ""
    else:
        message["content"] = checked_text(content, inside)
    message |= others
    _check_learning(message, at)
    return message


def _role(name: str, where: str, only_known: bool) -> str:
    if name.lower() in ROLES:
        return ROLES[name.lower()]
    hint = nearest(name, (*ROLES, *OTHER_ROLES))
    if name in OTHER_ROLES or not (only_known or hint.startswith("did you mean") or name == ""):
        return _whole(name, where)  # a template may have a role of its own
    raise PerdureError(f"{where}: {name!r} is not a role of a conversation; {hint}")


def _calls(content: Any, where: str) -> list[Any]:
    """Parse the tool calls that ShareGPT writes as JSON text."""
    calls = from_json(content, where)
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise PerdureError(
            f'{where}: a function_call must be JSON such as {{"name": ..., "arguments": ...}}'
        )
    return [{"type": "function", "function": call} for call in calls]


def _name_learning(message: Message, where: str) -> None:
    """Rename `loss` and `training`, which are other tools' names for it, to `train`."""
    for key in ("loss", "training"):
        value = message.pop(key, None)
        if value is None:
            continue
        if value not in (0, 1):
            raise PerdureError(f"{where}: {key} must be true or false, not {value!r}")
        if message.setdefault("train", bool(value)) != bool(value):
            raise PerdureError(f"{where}: {key} {value} and train say different things")
    for key in ("training_detail", "train_detail"):
        if message.pop(key, None):
            raise PerdureError(
                f"{where}: {key} is not supported, as a turn is learned whole or not at all; write "
                "train: true or false"
            )


def _check_learning(message: Message, where: str) -> None:
    """Check `weight` and `train`: valid values that agree, and only on the assistant's turns."""
    weight, train = message.get("weight"), message.get("train")
    if weight is not None and weight not in (0, 1):
        raise PerdureError(f"{where}: weight must be 0 or 1, not {weight!r}")
    if train is not None and not isinstance(train, bool):
        raise PerdureError(f"{where}: train must be true or false, not {train!r}")
    if None not in (weight, train) and bool(weight) != train:
        raise PerdureError(f"{where}: weight {weight} and train {train} say different things")
    if message["role"] != "assistant" and (weight or train):
        raise PerdureError(
            f"{where}: only the assistant's turns are learned, not the {message['role']}'s; remove "
            f"its {'weight' if weight else 'train'}"
        )


def _whole(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can hold half a surrogate pair, which tokenizers reject
        raise PerdureError(f"{where} holds a broken character (half of a surrogate pair)") from None
    return text
