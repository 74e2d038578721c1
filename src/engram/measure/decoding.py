"""Greedy decoding that depends on the model and its token ids, and on nothing else a base brings.

A base's `generation_config.json` is made for its demonstrations: a minimum length, suppressed or
forced tokens, beams, penalties, stop strings, a kind of cache. Under these a right answer can score
0, and two bases cannot be compared. So every setting is that of a fresh `GenerationConfig`, and
four ids are the base's own: bos, eos, pad and decoder_start.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig

from engram.models.base import Base


@contextmanager
def greedy(
    base: Base,
    max_new_tokens: int,
    pad_id: int,
    forced_first: int | None = None,
    stops: Collection[int] = (),
) -> Iterator[GenerationConfig]:
    """The settings to pass to `generate`, which are meanwhile the model's own as well.

    `generate` fills in what a given configuration leaves open from the model's `generation_config`,
    so that one is replaced, and put back in the end: it is stored with the weights.

    Args:
        base: a model that generates.
        max_new_tokens: when writing ends without an end token.
        pad_id: what stands behind the end of an answer that is shorter than its batch.
        forced_first: the token that every answer begins with.
        stops: tokens that end an answer beside `end_ids`.
    """
    network: Any = base.network if base.whole else base.peft.get_base_model()
    own: GenerationConfig = network.generation_config
    fresh = GenerationConfig(
        max_new_tokens=max_new_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=sorted({*end_ids(base), *stops}) or None,
        pad_token_id=pad_id,
        decoder_start_token_id=own.decoder_start_token_id,
        forced_bos_token_id=forced_first,
    )
    network.generation_config = fresh
    try:
        yield fresh
    finally:
        network.generation_config = own


def end_ids(base: Base) -> list[int]:
    """Where writing ends: the tokenizer's end token and the model's own (a chat's end of turn)."""
    own: Any = base.network.generation_config.eos_token_id
    ids = [base.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return sorted({i for i in ids if i is not None})  # type: ignore[misc]


def forced_first(base: Base, first_tokens: set[int]) -> int | None:
    """The base's `forced_bos_token_id` where every learned answer begins with it, else None.

    In a translation model it is the language of the answer. It is kept if training says the same:
    if `first_tokens`, those that the answers begin with as they are learned, are this one alone.
    """
    forced: Any = base.network.generation_config.forced_bos_token_id
    return forced if first_tokens == {forced} else None
