"""Decoding, greedy by default, that ignores the generation settings of the base.

A base's `generation_config.json` is made for its demonstrations. It may set a minimum length,
suppressed or forced tokens, beams, penalties, stop strings or a type of cache. With these settings
a correct answer can score 0, and bases cannot be compared. So every setting is the default of
`GenerationConfig`, except for four ids that are the base's own: bos, eos, pad and decoder_start.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig

from perdure.models.base import Base


@contextmanager
def decoding(
    base: Base,
    max_new_tokens: int,
    pad_id: int,
    forced_first: int | None = None,
    stops: Collection[int] = (),
    temperature: float = 0.0,
    suppressed: Collection[int] = (),
) -> Iterator[GenerationConfig]:
    """Make the settings to pass to `generate`, which for the block are also the model's own.

    `generate` takes settings that are not set from the model's `generation_config`. That is
    therefore replaced, and restored after the block because it is stored with the weights.

    Args:
        base: a model that can generate.
        max_new_tokens: the most tokens of an answer.
        pad_id: the token that fills the batch after the end of a shorter answer.
        forced_first: the token with which every answer begins, if any.
        stops: tokens that end an answer, in addition to `end_ids`.
        temperature: 0 decodes greedily; otherwise tokens are drawn from the softmax of the logits
            divided by it, over the whole vocabulary.
        suppressed: tokens that are never generated.
    """
    network: Any = base.network if base.whole else base.peft.get_base_model()
    original: GenerationConfig = network.generation_config
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        bos_token_id=original.bos_token_id,
        eos_token_id=sorted({*end_ids(base), *stops}) or None,
        pad_token_id=pad_id,
        decoder_start_token_id=original.decoder_start_token_id,
        forced_bos_token_id=forced_first,
        suppress_tokens=sorted(suppressed) or None,
        **({"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}),
    )
    network.generation_config = settings
    try:
        yield settings
    finally:
        network.generation_config = original


def end_ids(base: Base) -> list[int]:
    """Return the end tokens: the tokenizer's, and the model's own, such as a chat's end of turn."""
    model_ids: Any = base.network.generation_config.eos_token_id
    ids = [
        base.tokenizer.eos_token_id,
        *(model_ids if isinstance(model_ids, list) else [model_ids]),
    ]
    return sorted({i for i in ids if i is not None})  # type: ignore[misc]


def forced_first(base: Base, first_tokens: set[int]) -> int | None:
    """Return the base's `forced_bos_token_id` if every learned answer begins with it, else None.

    In a translation model this token is the language of the answer. It is only forced if it agrees
    with training, where the answers begin with `first_tokens`.
    """
    forced: Any = base.network.generation_config.forced_bos_token_id
    return forced if first_tokens == {forced} else None
