"""That settings, tokenizer and rows fit what the base takes."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from perdure.config import Config
from perdure.data.rows import Row
from perdure.data.text import row_texts
from perdure.data.tokens import check_known
from perdure.errors import PerdureError
from perdure.measure.predict import MAX_LENGTH
from perdure.models.base import BaseInfo
from perdure.models.kinds import Kind
from perdure.models.limits import Limits
from perdure.models.targets import fitting_adapter


def fit(config: Config, info: BaseInfo) -> None:
    """Write into the settings what the base decides: lengths left to it, the adapter's targets.

    Raises:
        PerdureError: fewer positions than the settings say, or special tokens that the base has no
            embedding for.
    """
    _fit_lengths(config, info.kind, info.limits)
    _check_special(config.base, info.tokenizer, info.limits)
    if config.adapter is not None:
        config.adapter = fitting_adapter(info.config, info.kind, config.adapter)


def _fit_lengths(config: Config, kind: Kind, takes: Limits) -> None:
    most = takes.positions
    if not config.max_length:
        config.max_length = min(MAX_LENGTH, most or MAX_LENGTH)
    elif most and config.max_length > most:
        raise PerdureError(
            f"max_length: {config.max_length} is more than the {most} positions of base "
            f"{config.base!r}; set max_length={most} or fewer"
        )
    most = takes.answer_positions if kind == "seq2seq" else takes.positions
    if kind == "encoder" or not most or config.max_completion_length <= most:
        return
    if config.max_completion_length == Config.max_completion_length:  # nobody asked for so many
        config.max_completion_length = most
    else:
        whose = "the decoder of base" if kind == "seq2seq" else "base"
        raise PerdureError(
            f"max_completion_length: {config.max_completion_length} is more than the {most} "
            f"positions of {whose} {config.base!r}; set max_completion_length={most} or fewer"
        )


def _check_special(base: str, tokenizer: PreTrainedTokenizerBase, takes: Limits) -> None:
    """The tokens that come into every row or batch: around a text, at its end, as padding."""
    around: Any = tokenizer(["a"], verbose=False)["input_ids"]
    around = [i for i in around[0] if i in tokenizer.all_special_ids]
    ids: Any = [*around, tokenizer.eos_token_id, tokenizer.pad_token_id]
    ids = [i for i in ids if i is not None]
    check_known(ids, takes.tokens, tokenizer, f"base {base!r}")


def check_prompts_known(tokens: int | None, rows: Sequence[Row], tokenizer: Any, task: str) -> None:
    """Check that all tokens of prompts that are scored are known, before they are cut.

    Raises:
        PerdureError: with the row and the token.
    """
    for number, row in enumerate(rows, 1):
        if tokens is not None and tokens < len(tokenizer) and "text" not in row:
            text, _ = row_texts(row, tokenizer, f"{task} test, row {number}")
            ids: Any = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            check_known(ids, tokens, tokenizer, f"{task} test, row {number}")
