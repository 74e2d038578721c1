"""`perdure try`: answer prompts with a stage."""

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, print_json, quiet, stderr, stdout


@command(api.answer, prompts="PROMPT...", max_new_tokens="--tokens")
def try_(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure try my-model "Great pasta, slow service. Sentiment:" --stage 1"""
    quiet()
    answers = api.answer(**arguments, say=stderr().print)
    if as_json:
        pairs = zip(arguments["prompts"], answers, strict=True)
        print_json([{"prompt": prompt, "answer": answer} for prompt, answer in pairs])
        return
    for answer in answers:
        stdout().print(answer)
        if not answer.strip():
            stderr().print("(the answer is empty)")
