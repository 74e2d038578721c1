"""Conversations as the base's chat template writes them, and where the assistant's turns stand.

A template is a program: it may merge turns, drop the thoughts of earlier ones, or write text of its
own around an answer. So nothing is assumed of it. A turn is found by rendering the conversation up
to it, with the generation prompt and with the turn, and where a template writes a turn otherwise
once others follow, by looking which characters change with its content.
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

from engram.data.rows import Row
from engram.data.training_templates import training_template
from engram.errors import EngramError


Message = dict[str, Any]
# The day that templates which write today's date are given, so that a row has the same tokens
# tomorrow: the one that Llama 3's template writes where it cannot ask for the date.
TODAY = datetime(2024, 7, 26)
FORMATS = [f"%{letter}" for letter in "aAwdbBmyYHIpMSfzZjUWcxXeFTDhkPrRGVuC"]
FORMATS += [f"%-{letter}" for letter in "dmyHIMSj"]  # without a zero before
# In a content's place, to see where it stands: no white space to strip, nothing to parse.
MARK, THOUGHT = "qxzMARKzxq", "qxzTHOUGHTzxq"
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # what templates call them
FAILURES = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


def is_chat(row: Row) -> bool:
    """Whether the row is made of messages, so that the chat template writes its special tokens."""
    return "messages" in row or isinstance(row.get("prompt"), list)


def conversation(row: Row) -> list[Message]:
    """All messages of a row."""
    return row["messages"] if "messages" in row else row["prompt"] + row["completion"]


def asked(row: Row) -> list[Message]:
    """The messages before the answer that is scored: all before the assistant's last."""
    return conversation(row)[:-1]


def write(
    messages: Sequence[Message],
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    generation_prompt: bool = False,
) -> str:
    """Messages as the template writes them, with the row's `tools` and `chat_template_kwargs`.

    Raises:
        EngramError: there is no chat template, or it refuses the messages.
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


def prompt_in_answered(
    row: Row, prompt: str, tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[str, str] | None:
    """The question alone, and with any answer, if that does not stand right behind the prompt."""
    answer = {"role": "assistant", "content": MARK}
    answered = write([*asked(row), answer], row, tokenizer, where)
    if answered.startswith(prompt + MARK):
        return None
    return write(asked(row), row, tokenizer, where), answered


def marked_tokens(
    row: Row, tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], list[bool]] | None:
    """Ids of a conversation, and which of them the template itself marks as the assistant's.

    None if the template has no `{% generation %}` blocks, or marks nothing.
    """
    settings = _settings(row, tokenizer, where)
    marks = re.search(r"\{%-?\s*generation\s*-?%\}", settings["chat_template"])
    if not tokenizer.is_fast or not marks:
        return None
    try:
        made: Any = tokenizer.apply_chat_template(
            conversation(row), return_dict=True, return_assistant_tokens_mask=True, **settings
        )
    except FAILURES as error:
        raise _refused(error, where) from error
    marked = [bool(mark) for mark in made["assistant_masks"]]
    return (made["input_ids"], marked) if any(marked) else None


def turns(row: Row, tokenizer: PreTrainedTokenizerBase, where: str) -> list[tuple[int, slice]]:
    """Where the whole conversation's text holds each of the assistant's turns.

    A turn is what the model would write: from where the generation prompt ends, with all that the
    template writes before the content, to where the next message begins.

    Returns:
        the message's index and its characters, in order.

    Raises:
        EngramError: a turn cannot be found.
    """
    said = conversation(row)
    whole = write(said, row, tokenizer, where)
    found: list[tuple[int, slice]] = []
    for i, message in enumerate(said):
        if message["role"] == "assistant":
            end = found[-1][1].stop if found else 0
            turn = _Turn(row, tokenizer, f"{where}, message {i + 1}", said, i, whole, end)
            found.append((i, turn.characters()))
    return found


def last_turn(row: Row, tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[str, slice]:
    """The whole conversation's text, and where it holds the assistant's last turn."""
    said = conversation(row)
    whole = write(said, row, tokenizer, where)
    turn = _Turn(row, tokenizer, f"{where}, message {len(said)}", said, len(said) - 1, whole, 0)
    return whole, turn.characters()


@dataclass
class _Turn:
    """One of the assistant's turns in a conversation's text, `whole`; it begins behind `end`."""

    row: Row
    tokenizer: PreTrainedTokenizerBase
    where: str
    said: list[Message]
    i: int
    whole: str
    end: int

    def characters(self) -> slice:
        before, last = self._before(True), self.i == len(self.said) - 1
        start = common_prefix(before, self.whole)
        if start < len(before) and start < common_prefix(before, self._before(False)):
            start = -1  # the history is written otherwise, so the place must be looked for
        through = self.whole if last else self._write(self.said[: self.i + 1])
        if start >= self.end and self.whole.startswith(through):
            return slice(start, len(through))
        content, stop = self._content(through)
        if start < self.end or start > content:
            start = self._start(before, through, content)
        if not self.end <= start <= content <= stop or start == stop:
            raise self._lost()
        return slice(start, stop)

    def _content(self, through: str) -> tuple[int, int]:
        """Where the content begins, and where the turn ends, by changing the content."""
        _, whole, alone = self._changed
        before, behind = whole.split(MARK)
        if not self.whole.endswith(behind):
            raise self._lost()
        start = common_prefix(before, self.whole)
        stop = len(self.whole) - len(behind)
        return min(start, stop), stop + self._ending(behind, alone.split(MARK)[1])

    def _ending(self, behind: str, alone: str) -> int:
        """How much of the text behind a content is the turn's own, which last would end `alone`."""
        same = common_prefix(behind, alone)
        prompt = self._prompt(self._before(True))
        if same == len(alone) or not prompt:
            return same
        # It ends otherwise when another turn follows: seen where one of the assistant's does.
        again = {"role": "assistant", "content": THOUGHT}
        try:
            both = self._write([*self.said[: self.i], self._changed[0], again])
        except EngramError:
            return same
        between = both[both.find(MARK) + len(MARK) : both.find(THOUGHT)]
        return max(same, common_prefix(behind, between[: max(between.rfind(prompt), 0)]))

    def _start(self, before: str, through: str, content: int) -> int:
        """Where the turn begins: behind the generation prompt, or as much of it as there is."""
        prompt = self._prompt(before)
        for length in range(len(prompt), 0, -1):
            at = self.whole.rfind(prompt[:length], self.end, content)
            if at >= 0:
                return at + length
        # Without a generation prompt the turn's header is the model's own to write.
        alone = self._changed[2].split(MARK)[0]
        header = alone[common_prefix(before, alone) :]
        return content - common_prefix(self.whole[:content][::-1], header[::-1])

    def _prompt(self, before: str) -> str:
        return before[common_prefix(before, self._before(False)) :]

    @cached_property
    def _changed(self) -> tuple[Message, str, str]:
        """The turn with one `MARK` in it, the conversation with it, and all up to it."""
        for changed in self._marked():
            whole = self._write([*self.said[: self.i], changed, *self.said[self.i + 1 :]])
            alone = self._write([*self.said[: self.i], changed])
            if whole.count(MARK) == alone.count(MARK) == 1:
                return changed, whole, alone
        raise self._lost()

    def _marked(self) -> Iterator[Message]:
        """The turn with another content, or with another call: not all templates write both."""
        message = self.said[self.i]
        if message.get("content"):
            yield {**message, "content": MARK}
        calls = message.get("tool_calls")
        if calls:
            called = calls[0].get("function", calls[0])
            for other in _calls_otherwise(called):
                first = {**calls[0], "function": other} if "function" in calls[0] else other
                yield {**message, "tool_calls": [first, *calls[1:]]}
        if not message.get("content"):
            yield {**message, "content": MARK}

    def _before(self, generation_prompt: bool) -> str:
        if self.i == 0:  # an answer to nothing: what any question is followed by
            asked = self._write([{"role": "user", "content": MARK}], generation_prompt)
            return asked[asked.find(MARK) :]
        return self._write(self.said[: self.i], generation_prompt)

    def _write(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        return write(messages, self.row, self.tokenizer, self.where, generation_prompt)

    def _lost(self) -> EngramError:
        return EngramError(
            f"{self.where}: this turn cannot be found in what the chat template writes of the "
            "conversation; mark it in the template with {% generation %}, or give the row as "
            "prompt and completion"
        )


@dataclass(frozen=True)
class Frame:
    """What a template writes around an answer, from where the generation prompt ends.

    `before` and `after` stand around the content of an answer without thoughts. `opening` stands
    before thoughts and `close` between thoughts and answer, None where the template knows of none.
    """

    before: str
    after: str
    close: str | None
    opening: str = ""


def frame(row: Row, tokenizer: PreTrainedTokenizerBase, where: str) -> Frame:
    """The template's own text around the answer to this row's prompt."""
    before_it = asked(row)

    def answer(**message: Any) -> str:
        said = {"role": "assistant", **message}
        return write([*before_it, said], row, tokenizer, where)

    whole = answer(content=MARK)
    if whole.count(MARK) != 1:
        return Frame("", "", None)
    prompt = write(before_it, row, tokenizer, where, True)
    start = common_prefix(prompt, whole)
    left, after = whole.split(MARK)
    close, opening = None, ""
    for key in THOUGHTS:
        thinking = answer(**{key: THOUGHT}, content=MARK)
        if close is None and _between(thinking):
            close = _between(thinking)
            opening = thinking[common_prefix(prompt, thinking) : thinking.find(THOUGHT)]
    if close is None:
        tagged = f"{THOUGHT}</think>{MARK}"
        thinking = answer(content=tagged)
        # A template that drops or moves what stands before the tag says that the rest answers.
        if tagged not in thinking and thinking.count(MARK) == 1:
            close = _between(thinking) or "</think>"
    return Frame(left[start:], after, close, opening)


def common_prefix(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many elements two sequences (texts, ids) have in common at their beginning."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])


def _calls_otherwise(called: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A call of another function, or with another text in the first of its arguments."""
    yield {**called, "name": MARK}
    arguments = called.get("arguments")
    if isinstance(arguments, Mapping):
        key = next((key for key, value in arguments.items() if isinstance(value, str)), None)
        if key is not None:
            yield {**called, "arguments": {**arguments, key: MARK}}


def _between(thinking: str) -> str | None:
    found = re.search(f"{THOUGHT}(.*?){MARK}", thinking, re.DOTALL)
    return found[1] if found and found[1].strip() else None


def _settings(row: Row, tokenizer: PreTrainedTokenizerBase, where: str) -> dict[str, Any]:
    if not tokenizer.chat_template:
        raise EngramError(
            f"{where} has messages, but the base's tokenizer has no chat template; "
            "set tokenizer.chat_template or give prompt and completion as text"
        )
    tools, own = row.get("tools"), row.get("chat_template_kwargs") or {}
    if isinstance(tools, str):
        tools = json.loads(tools)
    named: Any = tokenizer.chat_template
    default = named.get("default", "") if isinstance(named, Mapping) else named
    # As in TRL, where the completion of a prompt is learned with the template as it is.
    template = training_template(default) if "messages" in row else None
    try:
        template = template or tokenizer.get_chat_template(tools=tools)
    except ValueError as error:
        raise _refused(error, where) from error
    if not isinstance(own, Mapping):
        raise EngramError(f"{where}: chat_template_kwargs must be a mapping of the template's own")
    return {"chat_template": _dated(str(template)), "tools": tools, **own}


def _dated(template: str) -> str:
    """The template with a date that stands still: a macro in place of transformers' clock."""
    if "strftime_now" not in template:
        return template
    filters = "".join(f" | replace('{form}', '{TODAY.strftime(form)}')" for form in FORMATS)
    macro = "{% macro strftime_now(format) %}{{ format" + filters + " | replace('%%', '%') }}"
    return macro + "{% endmacro +%}" + template


def _refused(error: Exception, where: str) -> EngramError:
    reason = " ".join(str(error).split())[:200]
    return EngramError(f"{where}: the chat template refuses it ({reason}); mend the row")
