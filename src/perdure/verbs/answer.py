"""`try` answers prompts with a stage. As a Python function it is called `answer`."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from perdure.data.rows import Row
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import as_stored, base_at, stage_entry
from perdure.measure.predict import predict
from perdure.methods import make
from perdure.models.pins import check_pin
from perdure.say import Say


def answer(
    path: str | Path,
    prompts: Sequence[str],
    stage: int | None,
    options: Sequence[str],
    max_new_tokens: int | None,
    chat: bool,
    say: Say,
) -> list[str]:
    """Return a stage's answer to each prompt. See `perdure.api.answer`."""
    if max_new_tokens is not None and max_new_tokens < 1:
        raise PerdureError(f"an answer has at least 1 token, not {max_new_tokens}")
    for prompt in prompts:
        if not prompt.strip():
            raise PerdureError("the prompt is empty; write what the model should answer")
    lineage = Lineage(path)
    entry, config = stage_entry(lineage, stage), lineage.config
    check_pin(lineage.pin)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    base = base_at(lineage, entry)
    choices = list(options) or list(base.labels or ())
    unknown_labels = [option for option in options if option not in (base.labels or ())]
    if base.kind == "encoder" and (unknown_labels or not choices):
        learned = ", ".join(base.labels or ()) or "none yet"
        raise PerdureError(
            f"{path}: an encoder answers with a label it has learned"
            f"{f', not {unknown_labels[0]!r}' if unknown_labels else ''}; there are: {learned}"
        )
    with ExitStack() as stack:
        for method in make(config.method):
            stack.enter_context(method.inference(base.model))
        stack.enter_context(as_stored(lineage, entry, base))
        device, bf16 = next(base.model.parameters()).device.type, bool(config.training.get("bf16"))
        stack.enter_context(torch.autocast(device, torch.bfloat16, enabled=bf16))  # as in `score`
        answers, truncated = predict(
            base,
            [_row(prompt, chat) for prompt in prompts],
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


def _row(prompt: str, chat: bool) -> Row:
    if not chat:
        return {"prompt": prompt, "completion": "?"}
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "?"}]
    return {"messages": messages}
