"""`perdure try`: answer prompts with a stage."""

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, print_json, quiet, stderr, stderr_line, stdout
from perdure.data.conversations import read_conversations


@command(
    api.answer,
    prompts="[PROMPT]...",
    max_new_tokens="--tokens",
    messages="--messages FILE",
)
def try_(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure try my-model "Great pasta, slow service. Sentiment:" --stage 1"""
    quiet()
    answers = api.answer(**arguments, say=stderr_line)
    if as_json:
        asked = [{"prompt": prompt} for prompt in arguments.get("prompts", ())]
        if "messages" in arguments:
            rows = read_conversations(arguments["messages"])
            asked = [{"messages": row["messages"][:-1]} for row in rows]
        print_json([{**row, "answer": text} for row, text in zip(asked, answers, strict=True)])
        return
    for text in answers:
        stdout().print(text, soft_wrap=True)
        if not text.strip():
            stderr().print("(the answer is empty)")
