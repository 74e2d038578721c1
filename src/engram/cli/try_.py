"""`engram try`: look at the model."""

from typing import Annotated

import typer

from engram import api
from engram.cli.output import Folder, Json, Stage, print_json, quiet, stderr, stdout


def try_(
    folder: Folder,
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to answer.")],
    stage: Stage = None,
    option: Annotated[
        list[str] | None, typer.Option(help="A possible answer; once for each of them.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="At most so many are written.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a user's message (chat template).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask a stage: it writes an answer, or chooses among options. Changes nothing.

    Example: engram try my-model "Great pasta, slow service. Sentiment:" --stage 1
    """
    quiet()
    answers = api.answer(folder, prompt, stage, option or (), tokens, chat, stderr().print)
    if as_json:
        pairs = zip(prompt, answers, strict=True)
        print_json([{"prompt": asked, "answer": said} for asked, said in pairs])
        return
    for said in answers:
        stdout().print(said)
