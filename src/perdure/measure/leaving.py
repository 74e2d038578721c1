"""Greedy generation in which a row leaves its batch when its answer is finished.

`generate` goes on with all rows of a batch until the last one is finished, and computes a token of
padding at each step for the others. Here it is called for a few tokens at a time, and the cache is
continued with the rows that are not finished.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from perdure.measure.decided import StopWhenDecided
from perdure.models.base import Base


TOKENS = 8  # that are generated before finished rows leave
LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


def generate_leaving(
    base: Base,
    ids: Tensor,
    mask: Tensor,
    settings: GenerationConfig,
    rows: Sequence[int],
    criterion: Callable[[Sequence[int]], StopWhenDecided | None],
    processors: LogitsProcessorList,
) -> dict[int, list[int]]:
    """Generate the answers to a batch of prompts, padded on the left.

    Args:
        base: a model of which `can_leave` is true.
        ids: the prompts' token ids [rows, tokens].
        mask: 1 where there is a token of a prompt [rows, tokens].
        settings: greedy settings, with the most tokens of an answer.
        rows: the index of each row.
        criterion: makes the stopping criterion of a batch of these indices.
        processors: see each token's logits.

    Returns:
        The generated token ids by index. After an end token there may be padding.
    """
    start, device = ids.shape[1], ids.device
    most = start + (settings.max_new_tokens or 0)
    ends = torch.tensor(settings.eos_token_id or [], device=device)
    chunk = copy(settings)  # the settings of a few tokens
    left, cache = list(rows), DynamicCache(config=_config(base))
    answers: dict[int, list[int]] = {}
    while left:
        chunk.max_new_tokens = min(TOKENS, most - ids.shape[1])
        decided = criterion(left)
        ids = base.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=chunk,
            stopping_criteria=StoppingCriteriaList([decided] if decided else []),
            logits_processor=processors,
        )
        stopped = decided.stopped if decided else {}
        has_ended = torch.isin(ids[:, start:], ends).any(1).tolist()
        is_last = ids.shape[1] >= most
        unfinished = []
        for place, (row, ended) in enumerate(zip(left, has_ended, strict=True)):
            if ended or is_last or row in stopped:
                answers[row] = ids[place, start:].tolist()[: stopped.get(row)]
            else:
                unfinished.append(place)
        if len(unfinished) < len(left):
            places = torch.tensor(unfinished, dtype=torch.long, device=device)
            ids, mask, left = ids[places], mask[places], [left[place] for place in unfinished]
            if left:
                cache.batch_select_indices(places)
        mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
    return answers


def can_leave(base: Base) -> bool:
    """Return whether rows can be taken out of a model's cache, which is then continued.

    This is not so for models with a state of another kind, such as Mamba.
    """
    network: Any = base.network
    # transformers has no public word for whether `generate` may be given a DynamicCache.
    return (
        base.kind == "causal"
        and network._supports_default_dynamic_cache()
        and all(type(layer) in LAYERS for layer in DynamicCache(config=_config(base)).layers)
        and (base.whole or not base.peft.active_peft_config.is_prompt_learning)
    )


def _config(base: Base) -> Any:
    return base.network.config.get_text_config(decoder=True)
