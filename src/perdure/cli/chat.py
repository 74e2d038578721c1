"""`perdure chat`: a conversation with the stages of a lineage, line by line."""

import sys
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import (
    Json,
    complain,
    print_json,
    print_part,
    quiet,
    stderr,
    stderr_line,
    stdout,
)
from perdure.errors import PerdureError, nearest


if TYPE_CHECKING:
    from perdure.verbs.chat import Chat

COMMANDS = {
    "/stage N": "let stage N answer; the conversation is kept",
    "/stage N M": "let stage N answer, and show stage M's answer beside each of its answers",
    "/compare N": "show stage N's answer to the last question beside the last answer",
    "/system TEXT": "set the system prompt; without TEXT, remove it",
    "/reset": "begin a new conversation",
    "/help": "show these commands",
    "/quit": "end, as Ctrl-D and Ctrl-C do",
}
NAMES = tuple(dict.fromkeys(written.split()[0] for written in COMMANDS))


@command(api.chat, max_new_tokens="--tokens")
def chat(arguments: Arguments, as_json: Json = False) -> None:
    """Each line is a question; /help shows the commands. With --json, the conversation is printed
    at the end.

    Example: perdure chat my-chat --system "Answer in one sentence."
    """
    quiet()
    conversation = api.chat(**arguments, say=stderr_line)
    session = _Session(conversation, as_json)
    session.introduce()
    with suppress(EOFError, KeyboardInterrupt):
        while session.take(input(session.prompt()).strip()):
            pass
    if sys.stdin.isatty():
        stderr().print()
    if as_json:
        print_json([asdict(turn) for turn in conversation.turns])


class _Session:
    """What the lines of a user do: questions, and commands."""

    def __init__(self, conversation: "Chat", as_json: bool):
        self.chat, self.as_json = conversation, as_json
        self.beside: int | None = None  # the stage that is shown beside the one that answers

    def introduce(self) -> None:
        stderr_line(f"{self.chat.lineage.path}, stage {self.chat.stage}; /help shows the commands")

    def prompt(self) -> str:
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        return f"stage {self.chat.stage}> " if is_terminal else ""

    def take(self, line: str) -> bool:
        """Do what a line says, and return whether the conversation goes on.

        A mistake is reported in one line, and does not end the conversation.
        """
        name, _, rest = line.partition(" ")
        try:
            if name == "/quit":
                return False
            if not line.startswith("/"):
                self.ask(line)
            else:
                self.command(name, rest.strip())
        except PerdureError as error:
            complain(f"error: {error}")
        return True

    def command(self, name: str, rest: str) -> None:
        if name == "/stage":
            self.stage(rest)
        elif name == "/compare":
            [number] = _numbers(name, rest, most=1)
            self.compare(number)
        elif name == "/system":
            self.chat.system = rest or None
            stderr_line("system prompt set" if rest else "system prompt removed")
        elif name == "/reset":
            self.chat.reset()
            stderr_line("a new conversation")
        elif name == "/help":
            self.help()
        else:
            raise PerdureError(f"no command {name}; {nearest(name, NAMES)}")

    def stage(self, rest: str) -> None:
        number, *others = _numbers("/stage", rest, most=2)
        for other in others:
            self.chat.check_stage(other)
        self.chat.switch(number)
        self.beside = others[0] if others else None
        shown = "" if self.beside is None else f", and stage {self.beside} beside it"
        stderr_line(f"stage {number} answers{shown}")

    def ask(self, question: str) -> None:
        if not question:
            return
        if self.beside is not None:
            self.chat.ask(question)
            self.compare(self.beside)
        elif self.as_json:
            self.chat.ask(question)
        elif sys.stdout.isatty():
            self.stream(question)
        else:
            self.show(self.chat.ask(question))

    def stream(self, question: str) -> None:
        """Print the answer while it is generated."""
        shown: list[str] = []

        def show_part(part: str) -> None:
            shown.append(part)
            print_part(part)

        answer, begun = self.chat.ask(question, show_part), "".join(shown)
        if answer.startswith(begun):
            self.show(answer[len(begun) :], is_empty=not answer.strip())
        else:  # what was shown, such as reasoning, is not part of the answer
            stdout().print()
            self.show(answer)

    def show(self, text: str, is_empty: bool | None = None) -> None:
        stdout().print(text, soft_wrap=True)
        if not text.strip() if is_empty is None else is_empty:
            stderr_line("(the answer is empty)")

    def compare(self, stage: int) -> None:
        """Print the last answer, and that of another stage to the same question, side by side."""
        other = self.chat.again(stage)
        if self.as_json:
            return
        last = self.chat.turns[-1]
        table = Table(expand=False)
        for number in (last.stage, stage):
            table.add_column(f"stage {number}", overflow="fold", ratio=1)
        table.add_row(Text(last.answer), Text(other))
        stdout().print(table)

    def help(self) -> None:
        for written, meaning in COMMANDS.items():
            stderr().print(f"{written:14}{meaning}", soft_wrap=True)


def _numbers(name: str, rest: str, most: int) -> list[int]:
    """Return the numbers of stages behind a command.

    Raises:
        PerdureError: there is none, there are too many, or one is not a number.
    """
    words = rest.split()
    if not 1 <= len(words) <= most or not all(word.isdecimal() for word in words):
        usage = " or ".join(written for written in COMMANDS if written.startswith(name))
        raise PerdureError(f"{name} takes the number of a stage; write {usage}")
    return [int(word) for word in words]
