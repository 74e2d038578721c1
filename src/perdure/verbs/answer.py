"""`try` answers prompts and conversations with a stage. As a Python function it is `answer`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from perdure.data.conversations import (
    Conversations,
    read_conversations,
    unanswered,
    waiting,
    with_system,
)
from perdure.data.rows import Row
from perdure.data.unwritten import unwritten_roles
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import base_at, stage_entry
from perdure.measure.predict import predict
from perdure.models.base import Base
from perdure.models.pins import check_pin
from perdure.say import Say
from perdure.verbs.asking import as_scored, learned_in_template


def answer(
    path: str | Path,
    prompts: Sequence[str],
    stage: int | None,
    options: Sequence[str],
    max_new_tokens: int | None,
    chat: bool,
    plain: bool,
    system: str | None,
    messages: Conversations | None,
    say: Say,
) -> list[str]:
    """Return a stage's answer to each prompt or conversation. See `perdure.api.answer`."""
    if max_new_tokens is not None and max_new_tokens < 1:
        raise PerdureError(f"an answer has at least 1 token, not {max_new_tokens}")
    conversations = _conversations(prompts, messages, system)
    needs_template = {"--chat": chat, "--system": system is not None, "--messages": messages}
    wanted = next((option for option, value in needs_template.items() if value), None)
    if plain and wanted:
        raise PerdureError(f"{wanted} needs the chat template, which --plain leaves out")
    lineage = Lineage(path)
    entry, config = stage_entry(lineage, stage), lineage.config
    check_pin(lineage.pin)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    base = base_at(lineage, entry)
    choices = _choices(base, options, str(path))
    in_template = _in_template(
        lineage, lineage.head if stage is None else stage, base, wanted, plain=plain, say=say
    )
    for line in unwritten_roles(conversations if in_template else (), base.tokenizer, "messages"):
        say(line)
    with as_scored(lineage, entry, base):
        answers, truncated = predict(
            base,
            conversations if in_template else [unanswered(prompt) for prompt in prompts],
            mode="options" if choices else "generate",
            options=choices or None,
            max_length=config.max_length,
            max_completion_length=max_new_tokens or config.max_completion_length,
            batch_size=config.scoring.batch_size,
            where="the prompts",
        )
    if truncated:
        say(
            f"warning: prompts longer than max_length {config.max_length}, which were cut in the "
            f"middle: {truncated}"
        )
    return answers


def _conversations(
    prompts: Sequence[str], messages: Conversations | None, system: str | None
) -> list[Row]:
    """Return the rows that ask the prompts, or else the messages, in the chat template."""
    if bool(prompts) == (messages is not None):
        both = "a prompt and --messages were both given; leave out one of them"
        neither = "nothing to answer; give a prompt, or a conversation with --messages FILE"
        raise PerdureError(both if prompts else neither)
    if system is not None and not system.strip():
        raise PerdureError("the system prompt is empty; leave out --system")
    for prompt in prompts:
        if not prompt.strip():
            raise PerdureError("the prompt is empty; write what the model should answer")
    if messages is None:
        rows = [
            waiting({"messages": [{"role": "user", "content": prompt}]}, "the prompt")
            for prompt in prompts
        ]
    else:
        rows = read_conversations(messages)
    if system is None:
        return rows
    return [
        with_system(row, system, f"conversation {number}") for number, row in enumerate(rows, 1)
    ]


def _choices(base: Base, options: Sequence[str], path: str) -> list[str]:
    """Return the answers to choose from; an encoder chooses among its labels by default."""
    choices = list(options) or list(base.labels or ())
    unknown_labels = [option for option in options if option not in (base.labels or ())]
    if base.kind == "encoder" and (unknown_labels or not choices):
        learned = ", ".join(base.labels or ()) or "none yet"
        raise PerdureError(
            f"{path}: an encoder answers with a label it has learned"
            f"{f', not {unknown_labels[0]!r}' if unknown_labels else ''}; there are: {learned}"
        )
    return choices


def _in_template(
    lineage: Lineage, stage: int, base: Base, wanted: str | None, plain: bool, say: Say
) -> bool:
    """Decide whether a stage is asked in the chat template, and say so if there is one.

    Args:
        lineage: the lineage.
        stage: the number of the stage.
        base: its model.
        wanted: the option that needs the template, if one was given.
        plain: whether plain text was asked for.
        say: called with the decision.

    Raises:
        PerdureError: an option needs the template, and there is none.
    """
    if not base.tokenizer.chat_template:
        if wanted:
            raise PerdureError(
                f"{lineage.path}: its base has no chat template, which {wanted} needs; give the "
                "prompt as plain text"
            )
        return False
    if plain:
        say("note: asked as plain text")
    elif wanted:
        say("note: asked in the chat template")
    elif learned_in_template(lineage, stage) is False:
        say("note: asked as plain text, like the tasks' rows; --chat asks in the chat template")
        return False
    else:
        say("note: asked in the chat template; --plain asks as plain text")
    return not plain
