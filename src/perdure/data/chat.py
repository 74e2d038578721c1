"""Rendering conversations with the base's chat template, and locating the assistant's turns.

A template is a program. It may merge turns, drop the reasoning of earlier turns, or write text of
its own around an answer, so nothing is assumed about it. A turn is located by rendering the
conversation up to it, once with the generation prompt and once with the turn. If a template writes
a turn differently when others follow it, the turn is located by changing its content and comparing
the texts.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from perdure.data.messages import Message
from perdure.data.rows import Row
from perdure.data.training_templates import training_template
from perdure.errors import PerdureError, one_line


# Templates that write today's date are given this one, so that a row's tokens do not change from
# day to day. It is the date that Llama 3's template uses when it cannot ask for the current one.
TODAY = datetime(2024, 7, 26)
FORMATS = [f"%{letter}" for letter in "aAwdbBmyYHIpMSfzZjUWcxXeFTDhkPrRGVuC"]
FORMATS += [f"%-{letter}" for letter in "dmyHIMSj"]  # without leading zeros
# These stand in for a content or a reasoning, to see where the template writes it. They have no
# white space that a template would strip and nothing that it would parse.
MARK, THOUGHT = "qxzMARKzxq", "qxzTHOUGHTzxq"
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # templates' keys for the reasoning
FAILURES = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


def conversation(row: Row) -> list[Message]:
    """Return all messages of a row."""
    return row["messages"] if "messages" in row else row["prompt"] + row["completion"]


def prompt_messages(row: Row) -> list[Message]:
    """Return the messages before the answer that is scored: all but the last one."""
    return conversation(row)[:-1]


def write(
    messages: Sequence[Message],
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    generation_prompt: bool = False,
) -> str:
    """Render messages with the chat template and the row's `tools` and `chat_template_kwargs`.

    Raises:
        PerdureError: the tokenizer has no chat template, or the template refuses the messages.
    """
    settings = _settings(row, tokenizer, where)
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation_prompt, **settings
        )
    except FAILURES as error:
        raise _refused(error, where) from error
    assert isinstance(text, str)
    return text


def first_user_turn(tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[str, str]:
    """Return the text that the template writes before and after the user's first message.

    Raises:
        PerdureError: the template refuses the message, or does not write it.
    """
    row: Row = {"messages": [{"role": "user", "content": MARK}]}
    before, mark, after = write(row["messages"], row, tokenizer, where).partition(MARK)
    if not mark:
        raise PerdureError(f"{where}: the base's chat template does not write the user's message")
    return before, after


def prompt_in_answered(
    row: Row, prompt: str, tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[str, str] | None:
    """Render the prompt's messages alone, and with an answer after them.

    Returns None if the template writes the answer directly after `prompt`, the text with the
    generation prompt.
    """
    messages = prompt_messages(row)
    answer = {"role": "assistant", "content": MARK}
    answered = write([*messages, answer], row, tokenizer, where)
    if answered.startswith(prompt + MARK):
        return None
    return write(messages, row, tokenizer, where), answered


def marked_tokens(
    row: Row, tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], list[bool]] | None:
    """Return the ids of a conversation, and for each whether the template marks it as learned.

    Returns None if the template has no `{% generation %}` blocks, or if they mark nothing.
    """
    settings = _settings(row, tokenizer, where)
    marks = re.search(r"\{%-?\s*generation\s*-?%\}", settings["chat_template"])
    if not tokenizer.is_fast or not marks:
        return None
    try:
        encoded: Any = tokenizer.apply_chat_template(
            conversation(row), return_dict=True, return_assistant_tokens_mask=True, **settings
        )
    except FAILURES as error:
        raise _refused(error, where) from error
    marked = [bool(mark) for mark in encoded["assistant_masks"]]
    return (encoded["input_ids"], marked) if any(marked) else None


def turns(row: Row, tokenizer: PreTrainedTokenizerBase, where: str) -> list[tuple[int, slice]]:
    """Locate each of the assistant's turns in the text of the whole conversation.

    A turn is the text that the model should write. It begins after the generation prompt, includes
    all that the template writes before the content, and ends where the next message begins.

    Returns:
        The index of each of the assistant's messages and the slice of its characters, in order.

    Raises:
        PerdureError: a turn cannot be located.
    """
    messages = conversation(row)
    whole = write(messages, row, tokenizer, where)
    located: list[tuple[int, slice]] = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            turn = _Turn(
                row=row,
                tokenizer=tokenizer,
                where=f"{where}, message {i + 1}",
                messages=messages,
                i=i,
                whole=whole,
                end=located[-1][1].stop if located else 0,
            )
            located.append((i, turn.characters()))
    return located


def last_turn(row: Row, tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[str, slice]:
    """Return the text of the whole conversation and the slice of the assistant's last turn.

    Raises:
        PerdureError: the turn cannot be located.
    """
    messages = conversation(row)
    whole = write(messages, row, tokenizer, where)
    turn = _Turn(
        row=row,
        tokenizer=tokenizer,
        where=f"{where}, message {len(messages)}",
        messages=messages,
        i=len(messages) - 1,
        whole=whole,
        end=0,
    )
    return whole, turn.characters()


@dataclass
class _Turn:
    """One of the assistant's turns, to be located in the text of its conversation.

    Args:
        row: the row.
        tokenizer: the base's tokenizer.
        where: the beginning of the error line.
        messages: all messages of the conversation.
        i: the index of the turn's message.
        whole: the text of the conversation.
        end: the position in `whole` before which the turn cannot begin.
    """

    row: Row
    tokenizer: PreTrainedTokenizerBase
    where: str
    messages: list[Message]
    i: int
    whole: str
    end: int

    def characters(self) -> slice:
        """Return the slice of the turn's characters in `whole`."""
        before = self._before(generation_prompt=True)
        start = common_prefix(before, self.whole)
        if start < len(before) and start < common_prefix(before, self._before(False)):
            start = -1  # the history is written differently here, so the start must be searched for
        is_last = self.i == len(self.messages) - 1
        through = self.whole if is_last else self._write(self.messages[: self.i + 1])
        if start >= self.end and self.whole.startswith(through):
            return slice(start, len(through))
        content, stop = self._content()
        if start < self.end or start > content:
            start = self._start(before, content)
        if not self.end <= start <= content <= stop or start == stop:
            raise self._lost()
        return slice(start, stop)

    def _content(self) -> tuple[int, int]:
        """Return where the content begins and where the turn ends, found by changing it."""
        _, whole, alone = self._changed
        before, after = whole.split(MARK)
        if not self.whole.endswith(after):
            raise self._lost()
        start = common_prefix(before, self.whole)
        stop = len(self.whole) - len(after)
        return min(start, stop), stop + self._ending(after, alone.split(MARK)[1])

    def _ending(self, after: str, alone: str) -> int:
        """Return how many characters of the text after the content belong to the turn.

        `after` is all the text after the content, and `alone` is the text after the content if the
        conversation ends with this turn.
        """
        same = common_prefix(after, alone)
        prompt = self._prompt(self._before(True))
        if same == len(alone) or not prompt:
            return same
        # The turn ends differently if another one follows, so add another turn of the assistant.
        again = {"role": "assistant", "content": THOUGHT}
        try:
            both = self._write([*self.messages[: self.i], self._changed[0], again])
        except PerdureError:
            return same
        between = both[both.find(MARK) + len(MARK) : both.find(THOUGHT)]
        return max(same, common_prefix(after, between[: max(between.rfind(prompt), 0)]))

    def _start(self, before: str, content: int) -> int:
        """Return where the turn begins: after the longest part of the generation prompt."""
        prompt = self._prompt(before)
        for length in range(len(prompt), 0, -1):
            position = self.whole.rfind(prompt[:length], self.end, content)
            if position >= 0:
                return position + length
        # Without a generation prompt, the model has to write the turn's header itself.
        alone = self._changed[2].split(MARK)[0]
        header = alone[common_prefix(before, alone) :]
        return content - common_prefix(self.whole[:content][::-1], header[::-1])

    def _prompt(self, before: str) -> str:
        """Return the generation prompt at the end of `before`."""
        return before[common_prefix(before, self._before(False)) :]

    @cached_property
    def _changed(self) -> tuple[Message, str, str]:
        """The turn with one `MARK` in it, the text of the conversation, and that up to the turn."""
        for changed in self._marked():
            whole = self._write([*self.messages[: self.i], changed, *self.messages[self.i + 1 :]])
            alone = self._write([*self.messages[: self.i], changed])
            if whole.count(MARK) == alone.count(MARK) == 1:
                return changed, whole, alone
        raise self._lost()

    def _marked(self) -> Iterator[Message]:
        """Yield the turn with `MARK` in its content or a call: not all templates write both."""
        message = self.messages[self.i]
        if message.get("content"):
            yield {**message, "content": MARK}
        calls = message.get("tool_calls")
        if calls:
            function = calls[0].get("function", calls[0])
            for marked in _marked_calls(function):
                first = {**calls[0], "function": marked} if "function" in calls[0] else marked
                yield {**message, "tool_calls": [first, *calls[1:]]}
        if not message.get("content"):
            yield {**message, "content": MARK}

    def _before(self, generation_prompt: bool) -> str:
        """Render the messages before the turn."""
        if self.i == 0:  # no question before the turn: use the text after a placeholder question
            text = self._write([{"role": "user", "content": MARK}], generation_prompt)
            return text[text.find(MARK) :]
        return self._write(self.messages[: self.i], generation_prompt)

    def _write(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        return write(
            messages,
            self.row,
            self.tokenizer,
            self.where,
            generation_prompt=generation_prompt,
        )

    def _lost(self) -> PerdureError:
        return PerdureError(
            f"{self.where}: this turn cannot be located in the text that the chat template writes; "
            "mark it in the template with {% generation %}, or give the row as prompt and "
            "completion"
        )


@dataclass(frozen=True)
class Frame:
    """The text that a template writes around an answer, after the generation prompt.

    Args:
        before: the text before the content of an answer without reasoning.
        after: the text after the content.
        close: the text between reasoning and content, None if the template has no reasoning.
        opening: the text before the reasoning.
    """

    before: str
    after: str
    close: str | None
    opening: str = ""


def frame(row: Row, tokenizer: PreTrainedTokenizerBase, where: str) -> Frame:
    """Return the text that the template writes around the answer to a row's prompt."""
    messages = prompt_messages(row)

    def answered(**message: Any) -> str:
        return write([*messages, {"role": "assistant", **message}], row, tokenizer, where)

    whole = answered(content=MARK)
    if whole.count(MARK) != 1:
        return Frame(before="", after="", close=None)
    prompt = write(messages, row, tokenizer, where, generation_prompt=True)
    start = common_prefix(prompt, whole)
    before, after = whole.split(MARK)
    close, opening = None, ""
    for key in THOUGHTS:
        thinking = answered(**{key: THOUGHT}, content=MARK)
        if close is None and _between(thinking):
            close = _between(thinking)
            opening = thinking[common_prefix(prompt, thinking) : thinking.find(THOUGHT)]
    if close is None:
        tagged = f"{THOUGHT}</think>{MARK}"
        thinking = answered(content=tagged)
        # A template that drops or moves the text before the tag treats the rest as the answer.
        if tagged not in thinking and thinking.count(MARK) == 1:
            close = _between(thinking) or "</think>"
    return Frame(before=before[start:], after=after, close=close, opening=opening)


def common_prefix(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the length of the common prefix of two sequences, such as texts or ids."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])


def _marked_calls(function: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a call with `MARK` as its name, and one with `MARK` as its first text argument."""
    yield {**function, "name": MARK}
    arguments = function.get("arguments")
    if isinstance(arguments, Mapping):
        key = next((key for key, value in arguments.items() if isinstance(value, str)), None)
        if key is not None:
            yield {**function, "arguments": {**arguments, key: MARK}}


def _between(text: str) -> str | None:
    """Return the text between reasoning and content, or None if it is blank."""
    match = re.search(f"{THOUGHT}(.*?){MARK}", text, re.DOTALL)
    return match[1] if match and match[1].strip() else None


def _settings(row: Row, tokenizer: PreTrainedTokenizerBase, where: str) -> dict[str, Any]:
    if not tokenizer.chat_template:
        raise PerdureError(
            f"{where} has messages, but the base's tokenizer has no chat template; "
            "set tokenizer.chat_template or give prompt and completion as text"
        )
    tools, template_kwargs = row.get("tools"), row.get("chat_template_kwargs") or {}
    if isinstance(tools, str):
        tools = json.loads(tools)
    templates: Any = tokenizer.chat_template  # a template, or several by name
    default = templates.get("default", "") if isinstance(templates, Mapping) else templates
    # As in TRL, rows of prompt and completion are rendered with the model's own template.
    template = training_template(default) if "messages" in row else None
    try:
        template = template or tokenizer.get_chat_template(tools=tools)
    except ValueError as error:
        raise _refused(error, where) from error
    if not isinstance(template_kwargs, Mapping):
        raise PerdureError(f"{where}: chat_template_kwargs must be a mapping of template variables")
    return {"chat_template": _dated(str(template)), "tools": tools, **template_kwargs}


def _dated(template: str) -> str:
    """Return the template with a fixed date: a macro replaces transformers' `strftime_now`."""
    if "strftime_now" not in template:
        return template
    filters = "".join(f" | replace('{form}', '{TODAY.strftime(form)}')" for form in FORMATS)
    macro = "{% macro strftime_now(format) %}{{ format" + filters + " | replace('%%', '%') }}"
    return macro + "{% endmacro +%}" + template


def _refused(error: Exception, where: str) -> PerdureError:
    reason = one_line(error)
    return PerdureError(f"{where}: the chat template refuses the row ({reason}); fix the row")
