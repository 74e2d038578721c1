"""A command is its verb's signature: what becomes of each kind of parameter."""

import contextlib
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer

from command import perdure
from perdure import api
from perdure.cli import VERBS
from perdure.cli.from_api import command, described


def verb(
    folder: str | Path,
    rows: str | Path | Sequence[dict[str, Any]] | Mapping[str, Any],
    names: Sequence[str] = (),
    stages: Sequence[int] = (),
    how: Literal["fast", "slow"] | None = None,
    out: str | Path = "out.html",
    count: int = 2,
    full_size: bool = False,
    *,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> None:
    """Do something. Change nothing.

    Only a Python user reads this.

    Args:
        folder: Where it is done,
            in a folder.
        rows: The rows.
        names: Only these.
        stages: Only at these.
        how: In which way.
        out: The page.
        count: How often.
        full_size: At full size.
        say: Takes the notes.
        **settings: What else there is.

    Returns:
        Nothing: this is not part of the arguments.
    """


def invoke(*arguments: str, **spelled: str) -> tuple[dict[str, Any], str]:
    """What the handler receives, and what is printed."""
    received: dict[str, Any] = {}

    @command(verb, **spelled)
    def handler(arguments, loud: Annotated[bool, typer.Option("--loud", help="Shout.")] = False):
        """Example: program verb here rows.jsonl"""
        received.update(arguments, loud=loud)

    program = typer.Typer(rich_markup_mode=None, add_completion=False)
    program.command()(handler)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        program(list(arguments), standalone_mode=False)
    return received, printed.getvalue()


def test_what_was_not_typed_is_left_to_the_verb_unless_it_has_a_value():
    received, _ = invoke("a/b/", "hub:me//it")
    assert received == {
        "folder": Path("a/b"),
        "rows": "hub:me//it",
        "out": Path("out.html"),
        "count": 2,
        "full_size": False,
        "loud": False,
    }


def test_every_kind_of_parameter_can_be_typed():
    typed = ("a", "rows", "--name", "x", "--name", "y", "--stages", "0,2", "--how", "quick")
    received, output = invoke(*typed, "--count", "3", "--full-size", "--loud", "k=1", "l.m=2")
    assert received == {
        "folder": Path("a"),
        "rows": "rows",
        "names": ["x", "y"],
        "stages": "0,2",
        "how": "quick",  # the verb itself refuses it
        "out": Path("out.html"),
        "count": 3,
        "full_size": True,
        "settings": ["k=1", "l.m=2"],
        "loud": True,
    }, output


def test_the_help_is_the_docstrings():
    _, output = invoke("--help", rows="ROWS.jsonl", out="--page FILE.html")
    help_text = " ".join(output.split())
    assert "Do something. Change nothing. Example: program verb here rows.jsonl" in help_text
    assert "Where it is done, in a folder." in help_text
    for words in ("ROWS.jsonl", "--page FILE.html", "--how fast|slow", "--loud", "Only these."):
        assert words in help_text
    assert "--name" in help_text
    assert "May be given more than once." in help_text
    for words in ("--say", "Only a Python user", "Returns", "--no-full-size"):
        assert words not in help_text


@pytest.mark.parametrize("name", VERBS)
def test_every_command_is_made_from_a_verb_whose_parameters_are_all_explained(name):
    function = getattr(api, {"try": "answer", "set": "configure"}.get(str(name), str(name)))
    summary, meanings = described(function)
    assert set(meanings) == set(inspect.signature(function).parameters)
    help_text = " ".join(perdure(name, "--help").out.split())
    assert summary.replace("\n", " ") in help_text
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            assert meanings[parameter.name] in help_text
