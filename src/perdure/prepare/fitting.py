"""Fitting the settings to the base, and checking that the tokens have embeddings."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from perdure.config import Config
from perdure.data.rows import Row
from perdure.data.text import row_texts
from perdure.data.tokens import check_known
from perdure.errors import PerdureError
from perdure.measure.guard.lm_eval_tasks import LmEvalTasks
from perdure.measure.predict import MAX_LENGTH
from perdure.models.base import BaseInfo
from perdure.models.kinds import Kind
from perdure.models.limits import Limits
from perdure.models.targets import fitting_adapter


def fit(config: Config, info: BaseInfo) -> None:
    """Fill in the settings that depend on the base: lengths and the adapter's targets.

    Raises:
        PerdureError: the base has fewer positions than the settings need, or no embedding for a
            special token of the tokenizer.
    """
    _fit_lengths(config, info.kind, info.limits)
    _check_special(config.base, info.tokenizer, info.limits)
    if config.adapter is not None:
        config.adapter = fitting_adapter(info.config, info.kind, config.adapter)


def check_gate_fits(config: Config, kind: Kind) -> None:
    """Check that the general ability of a base can be measured if the gate has a limit for it.

    Raises:
        PerdureError: the base is an encoder.
    """
    for key in ("general", "kl"):
        if kind == "encoder" and getattr(config.gate, key) is not None:
            raise PerdureError(
                f"gate: {key} is a limit for a generative base, and base {config.base!r} is an "
                "encoder; set gate.forgetting instead"
            )


def guard_tasks(config: Config, info: BaseInfo) -> LmEvalTasks | None:
    """Return the tasks of lm-eval that the guard runs, after a trial without the model.

    Raises:
        PerdureError: one cannot be run.
    """
    if config.guard is None or config.guard.lm_eval is None:
        return None
    if info.kind == "encoder":
        raise PerdureError(
            f"guard.lm_eval: it is for a generative base, and base {config.base!r} is an encoder; "
            "leave it out"
        )
    tasks = LmEvalTasks(config.guard.lm_eval)
    tasks.try_on(info)
    return tasks


def _fit_lengths(config: Config, kind: Kind, limits: Limits) -> None:
    positions = limits.positions
    if not config.max_length:
        config.max_length = min(MAX_LENGTH, positions or MAX_LENGTH)
    elif positions and config.max_length > positions:
        raise PerdureError(
            f"max_length: {config.max_length} is more than the {positions} positions of base "
            f"{config.base!r}; set max_length={positions} or fewer"
        )
    positions = limits.answer_positions if kind == "seq2seq" else limits.positions
    if kind == "encoder" or not positions or config.max_completion_length <= positions:
        return
    if config.max_completion_length == Config.max_completion_length:  # the default can be lowered
        config.max_completion_length = positions
    else:
        model = "the decoder of base" if kind == "seq2seq" else "base"
        raise PerdureError(
            f"max_completion_length: {config.max_completion_length} is more than the {positions} "
            f"positions of {model} {config.base!r}; set max_completion_length={positions} or fewer"
        )


def _check_special(base: str, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> None:
    """Check the tokens that are part of every row or batch: around a text, at its end, padding."""
    around: Any = tokenizer(["a"], verbose=False)["input_ids"]
    around = [i for i in around[0] if i in tokenizer.all_special_ids]
    ids: Any = [*around, tokenizer.eos_token_id, tokenizer.pad_token_id]
    ids = [i for i in ids if i is not None]
    check_known(ids, limits.tokens, tokenizer, f"base {base!r}")


def check_prompts_known(
    tokens: int | None, rows: Sequence[Row], tokenizer: Any, where: str
) -> None:
    """Check that the base has an embedding for every token of the uncut prompts of scored rows.

    `tokens` is the number of the base's embeddings, None if it is unknown.

    Raises:
        PerdureError: a token has no embedding; the line names the row and the token.
    """
    for number, row in enumerate(rows, 1):
        if tokens is not None and tokens < len(tokenizer) and "text" not in row:
            text, _ = row_texts(row, tokenizer, f"{where}, row {number}")
            ids: Any = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            check_known(ids, tokens, tokenizer, f"{where}, row {number}")
