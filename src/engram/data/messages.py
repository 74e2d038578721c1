"""Conversations, checked: messages as chat templates take them, with tools, calls and reasoning.

A message keeps every key that a template may read. Content in parts of text is joined, as templates
write the parts one after another. ShareGPT's `from` and `value` are read as `role` and `content`.
"""

import json
from collections.abc import Mapping
from typing import Any

from engram.errors import EngramError, nearest


Message = dict[str, Any]
ROLES = {  # what other formats call the roles of a chat template
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
    "function_call": "assistant",
}
OTHER_ROLES = ("developer", "function", "ipython", "documents", "context")  # of some templates


def checked_text(value: Any, where: str) -> str:
    """The text itself, if it is text with something in it; `where` begins the error line."""
    if value is None:
        raise EngramError(f"{where} is missing; every row needs one")
    if not isinstance(value, str):
        raise EngramError(f"{where} must be text, not {type(value).__name__}; put it in quotes")
    if not value.strip():
        raise EngramError(f"{where} is empty; fill it in or drop the row")
    return _whole(value, where)


def checked_messages(value: Any, where: str, whole: bool = False) -> list[Message]:
    """Checked messages; a `whole` conversation also has a question and ends with its answer.

    Raises:
        EngramError: no list of messages, an unknown role, content that is no text, or nothing that
            the assistant learns to say.
    """
    value = from_json(value, where)
    if not isinstance(value, list) or not value:
        raise EngramError(f'{where} must be a non-empty list of {{"role": ..., "content": ...}}')
    messages = [_message(raw, number, where) for number, raw in enumerate(value, 1)]
    if whole:
        check_whole(messages, where)
    return messages


def check_whole(messages: list[Message], where: str) -> None:
    """Raise EngramError unless something is asked, and answered at the end."""
    last = messages[-1]["role"]
    if last != "assistant":
        raise EngramError(f"{where} must end with the assistant's message, not the {last}'s")
    if len(messages) < 2:
        raise EngramError(f"{where} must hold a message before the assistant's")
    if not any(learned(message) for message in messages):
        raise EngramError(
            f"{where}: every assistant turn has weight 0 or train false, so nothing is learned; "
            "remove the flag from one of them"
        )


def learned(message: Message) -> bool:
    """Whether a turn has a loss: the assistant's, unless `weight` is 0 or `train` is false."""
    return (
        message["role"] == "assistant" and message.get("weight") != 0 and message.get("train", True)
    )


def checked_tools(value: Any, where: str) -> list[Any]:
    """The functions that a conversation may call, each a mapping; a list, or its JSON text."""
    value = from_json(value, where)
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise EngramError(f"{where} must be a list of functions, such as JSON schemas, or its JSON")
    return plain_json(value, where)


def from_json(value: Any, where: str) -> Any:
    """A cell of a table holds a list or a mapping as JSON text."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise EngramError(f"{where} looks like JSON and is not ({error.msg})") from None


def plain_json(value: Any, where: str) -> Any:
    """The value itself, if JSON can hold it: a row is always JSON."""
    try:
        _whole(json.dumps(value, allow_nan=False, ensure_ascii=False), where)
    except (TypeError, ValueError) as error:
        if isinstance(error, EngramError):
            raise
        raise EngramError(f"{where} is not plain JSON ({error}); write it as text") from None
    return value


def joined(parts: list[Any], where: str) -> str:
    """The text of content that comes in parts, which must all be text."""
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind != "text":
            raise EngramError(
                f"{where} holds a part of type {kind!r}; only parts of text are learned, so take "
                "the part or the row out"
            )
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise EngramError(f'{where}: a part must be {{"type": "text", "text": ...}}')
        texts.append(text)
    return "".join(texts)


def _message(raw: Any, number: int, where: str) -> Message:
    at, inside = f"{where}: message {number}", f"{where}: the content of message {number}"
    sharegpt = isinstance(raw, Mapping) and "role" not in raw and "from" in raw
    if sharegpt:
        named = {"from": "role", "value": "content"}
        raw = {named.get(key, key): value for key, value in raw.items()}
    if not isinstance(raw, Mapping) or not isinstance(raw.get("role"), str):
        raise EngramError(f'{at} must be {{"role": ..., "content": ...}}')
    message = {key: value for key, value in raw.items() if value is not None}
    message["role"] = _role(raw["role"], at, only_known=sharegpt)
    if message.pop("function_call", None):
        raise EngramError(
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
    others = {key: plain_json(message[key], f"{at}: {key}") for key in message if key != "role"}
    message = {"role": message["role"]}
    if message["role"] == "tool" and content == "":  # a tool may return nothing
        message["content"] = content
    elif not content and "tool_calls" in others:  # null and empty are the same to every template
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
        return name  # a template may have a role of its own
    raise EngramError(f"{where}: {name!r} is not a role of a conversation; {hint}")


def _calls(content: Any, where: str) -> list[Any]:
    """The tool calls that ShareGPT writes as JSON text."""
    calls = from_json(content, where)
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise EngramError(
            f'{where}: a function_call must be JSON such as {{"name": ..., "arguments": ...}}'
        )
    return [{"type": "function", "function": call} for call in calls]


def _name_learning(message: Message, where: str) -> None:
    """Write `loss` and `training`, as other tools call `train`, under that name."""
    for key in ("loss", "training"):
        value = message.pop(key, None)
        if value is None:
            continue
        if value not in (0, 1):
            raise EngramError(f"{where}: {key} must be true or false, not {value!r}")
        if message.setdefault("train", bool(value)) != bool(value):
            raise EngramError(f"{where}: {key} {value} and train say different things")
    for key in ("training_detail", "train_detail"):
        if message.pop(key, None):
            raise EngramError(
                f"{where}: {key} is not heeded, as a turn is learned whole or not at all; write "
                "train: true or false"
            )


def _check_learning(message: Message, where: str) -> None:
    """That `weight` and `train` say whether an assistant's turn is learned, and say it once."""
    weight, train = message.get("weight"), message.get("train")
    if weight is not None and weight not in (0, 1):
        raise EngramError(f"{where}: weight must be 0 or 1, not {weight!r}")
    if train is not None and not isinstance(train, bool):
        raise EngramError(f"{where}: train must be true or false, not {train!r}")
    if None not in (weight, train) and bool(weight) != train:
        raise EngramError(f"{where}: weight {weight} and train {train} say different things")
    if message["role"] != "assistant" and (weight or train):
        raise EngramError(
            f"{where}: only the assistant's turns are learned, not the {message['role']}'s; take "
            f"its {'weight' if weight else 'train'} off"
        )


def _whole(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which no tokenizer takes
        raise EngramError(f"{where} holds a broken character (half of a surrogate pair)") from None
    return text
