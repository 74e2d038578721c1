"""`chat` is a conversation with the stages of a lineage."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from perdure.data.conversations import unanswered, waiting, with_system
from perdure.data.messages import Message
from perdure.data.rows import Row
from perdure.data.unwritten import unwritten_roles
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import BaseLoader, is_untouched, stage_entry
from perdure.measure.predict import LONG, generate_answers
from perdure.models.base import Base, read_base
from perdure.models.pins import check_pin
from perdure.say import Say
from perdure.verbs.asking import as_scored, learned_in_template


@dataclass(frozen=True)
class Turn:
    """A question, its answer, and the stage that gave it."""

    question: str
    answer: str
    stage: int


class Chat:
    """A conversation with the stages of a lineage. See `perdure.api.chat`.

    Args:
        path: the lineage.
        stage: the stage that answers; None for the newest.
        system: the system prompt.
        max_new_tokens: the most tokens of an answer; None for the lineage's setting.
        temperature: 0 decodes greedily.
        plain: whether the questions are asked as plain text, each alone.
        say: called with each note and each warning.

    Attributes:
        turns: the conversation so far.
        stage: the number of the stage that answers.
        in_template: whether the conversation is written with the chat template. If not, each
            question is asked alone, as plain text.
    """

    def __init__(
        self,
        path: str | Path,
        stage: int | None,
        system: str | None,
        max_new_tokens: int | None,
        temperature: float,
        plain: bool,
        say: Say,
    ):
        if max_new_tokens is not None and max_new_tokens < 1:
            raise PerdureError(f"an answer has at least 1 token, not {max_new_tokens}")
        if not 0 <= temperature < math.inf:
            raise PerdureError(
                f"a temperature must be 0 or more, got {temperature}; 0 decodes greedily"
            )
        self.lineage, self.say = Lineage(path), say
        config = self.lineage.config
        self.max_new_tokens = max_new_tokens or config.max_completion_length
        self.temperature = temperature
        self.turns: list[Turn] = []
        self._system: str | None = None
        number = self.lineage.head if stage is None else stage
        self.check_stage(number)
        check_pin(self.lineage.pin)
        info = read_base(config.base, self.lineage.pin.get("revision"))
        if info.kind == "encoder":
            raise PerdureError(
                f"{path}: its base is an encoder, which cannot generate; `perdure try` asks it for "
                "a label"
            )
        has_template = bool(info.tokenizer.chat_template)
        self.in_template = has_template and not plain
        self._tokenizer = info.tokenizer
        self.system = system
        torch.set_num_threads(config.threads or torch.get_num_threads())
        self._loader = BaseLoader(info)
        self._base: Base | None = None
        self._loaded = -1  # the stage whose weights are in `_base`
        self.switch(number)
        self._say_form(has_template)

    @property
    def system(self) -> str | None:
        """The system prompt.

        Raises:
            PerdureError: on assignment, if it is blank or there is no chat template for it.
        """
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if text is not None and not self.in_template:
            raise PerdureError("a system prompt needs the chat template; this is plain text")
        if text is not None and not text.strip():
            raise PerdureError("the system prompt is empty; leave it out")
        self._system = text
        if text is not None:
            row = self._row("?", [])
            for line in unwritten_roles([row], self._tokenizer, "the conversation"):
                self.say(line)

    def check_stage(self, stage: int) -> None:
        """Check that there is such a stage.

        Raises:
            PerdureError: there is none.
        """
        stage_entry(self.lineage, stage)

    def switch(self, stage: int) -> None:
        """Let another stage answer from now on. The conversation is kept.

        Raises:
            PerdureError: there is no such stage, or its weights were removed.
        """
        self._model(stage)
        self.stage = stage

    def reset(self) -> None:
        """Begin a new conversation with the same stage and system prompt."""
        self.turns = []

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> str:
        """Answer a question, as the next turn of the conversation.

        Args:
            question: the question.
            on_text: called with each new part of the answer while it is generated.

        Raises:
            PerdureError: the question is empty, or the chat template refuses the conversation.
        """
        answer = self._answer(self.stage, question, self.turns, on_text)
        self.turns.append(Turn(question, answer, self.stage))
        return answer

    def again(self, stage: int) -> str:
        """Return the answer of another stage to the last question, in the same conversation.

        The conversation goes on with the answer that stands in it.

        Raises:
            PerdureError: nothing was asked yet, there is no such stage, or its weights were
                removed.
        """
        if not self.turns:
            raise PerdureError("nothing was asked yet; ask something first")
        return self._answer(stage, self.turns[-1].question, self.turns[:-1], None)

    def _answer(
        self,
        stage: int,
        question: str,
        earlier: list[Turn],
        on_text: Callable[[str], None] | None,
    ) -> str:
        if not question.strip():
            raise PerdureError("the question is empty; write what the model should answer")
        row = self._row(question, earlier)
        base = self._model(stage)
        with as_scored(self.lineage, stage_entry(self.lineage, stage), base):
            [answer], truncated = generate_answers(
                base,
                [row],
                max_length=LONG,  # the base's own positions are the limit
                max_completion_length=self.max_new_tokens,
                where="the conversation",
                temperature=self.temperature,
                on_text=on_text,
            )
        if truncated:
            self.say(
                "warning: the conversation is longer than the base's positions, and was cut in the "
                "middle; begin a new one"
            )
        return answer.text

    def _row(self, question: str, earlier: list[Turn]) -> Row:
        if not self.in_template:
            return unanswered(question)
        messages: list[Message] = []
        for turn in earlier:
            if turn.answer.strip():  # a template may refuse an empty answer, or none
                messages.append({"role": "user", "content": turn.question})
                messages.append({"role": "assistant", "content": turn.answer})
        messages.append({"role": "user", "content": question})
        row = waiting({"messages": messages}, "the conversation")
        return row if self.system is None else with_system(row, self.system, "the conversation")

    def _model(self, stage: int) -> Base:
        """Return the model of a stage, and load its weights unless the model has them.

        Stage 0 is any stage's model with the adapter disabled (`as_scored`), except where the
        lineage has a stage 0 of its own.
        """
        entry = stage_entry(self.lineage, stage)
        base = self._base
        if base and (stage == self._loaded or is_untouched(self.lineage, entry, base)):
            return base
        self._base = None  # a stage that does not load leaves no model of which it is unclear
        base = self._loader.at(self.lineage, entry)
        self._base, self._loaded = base, stage
        return base

    def _say_form(self, has_template: bool) -> None:
        """Say whether the chat template is used, unless that is what the stage was trained with."""
        if not has_template:
            self.say(
                "note: the base has no chat template, so each line is asked alone, as plain text"
            )
        elif not self.in_template:
            self.say("note: each line is asked alone, as plain text")
        elif learned_in_template(self.lineage, self.stage) is False:
            self.say(
                "note: the tasks were learned as plain text, but asked in the chat template; "
                "--plain asks as plain text"
            )
        else:
            self.say("note: asked in the chat template")
