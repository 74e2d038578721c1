"""How probable a model finds each of a row's options, with their common prompt run only once."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.cache_utils import DynamicCache

from perdure.data.tokens import IGNORED
from perdure.measure.batches import batches
from perdure.measure.finite import check_logits
from perdure.measure.leaving import can_leave
from perdure.measure.likelihood import answer_ids, log_likelihoods
from perdure.models.base import Base
from perdure.models.batch import padded
from perdure.models.decoder import decoder_inputs
from perdure.models.head import activates_adapter, run_with_logits_at


def option_likelihoods(
    base: Base, pairs: Sequence[dict[str, Any]], options: int, batch_size: int, where: str
) -> list[float]:
    """Return log p(option | prompt) of each pair, summed over the option's tokens, in nats.

    A causal model reads a prompt once and continues its cache with each option; an encoder-decoder
    encodes it once. Prompts that a long option has cut shorter, batches with padding beyond the
    model's last position, and models whose cache or batches do not allow it, are run as pairs
    (`log_likelihoods`).

    Args:
        base: the model.
        pairs: the features of each row with each option, all options of a row one after another.
        options: how many options there are.
        batch_size: pairs per batch, except that a row's options are always in the same batch.
        where: the name of the rows, with which an error line begins.

    Raises:
        NotFiniteError: the model's outputs are not finite.
    """
    values = [0.0] * len(pairs)
    shares = can_share(base)
    shared: list[int] = []
    alone: list[int] = []
    for start in range(0, len(pairs), options):
        if shares and _have_one_prompt(base, pairs[start : start + options]):
            shared.append(start)
        else:
            alone += range(start, start + options)
    prompts = [_prompt(base, pairs[start]) for start in shared]
    for batch in batches(prompts, max(1, batch_size // options)):
        rows = [shared[i] for i in batch]
        answers = [answer_ids(base.kind, pairs[i + k]) for i in rows for k in range(options)]
        if base.kind == "causal" and not _have_room(base, [prompts[i] for i in batch], answers):
            alone += [start + k for start in rows for k in range(options)]
            continue
        score = _continued if base.kind == "causal" else _decoded
        scores = score(base, [prompts[i] for i in batch], answers, options, where)
        for row, start in enumerate(rows):
            values[start : start + options] = scores[row * options : (row + 1) * options]
    plain = log_likelihoods(base, [pairs[i] for i in alone], batch_size, where)
    for i, value in zip(alone, plain, strict=True):
        values[i] = value
    return values


def can_share(base: Base) -> bool:
    """Return whether several answers can go on from one pass of their prompt."""
    if base.padding.left != "any" or base.padding.right != "any":
        return False
    if activates_adapter(base.network):
        return False
    if base.kind == "causal":
        return can_leave(base)
    return base.whole or not base.peft.active_peft_config.is_prompt_learning


def _prompt(base: Base, pair: dict[str, Any]) -> list[int]:
    """Return the token ids of a pair's prompt."""
    if base.kind == "seq2seq":
        return pair["input_ids"]
    first = next(i for i, label in enumerate(pair["labels"]) if label != IGNORED)
    return pair["input_ids"][:first]


def _have_one_prompt(base: Base, pairs: Sequence[dict[str, Any]]) -> bool:
    """Return whether the pairs of a row have the same prompt, with all labels behind it."""
    prompts = [_prompt(base, pair) for pair in pairs]
    if any(prompt != prompts[0] for prompt in prompts):
        return False
    return base.kind == "seq2seq" or (
        bool(prompts[0]) and all(IGNORED not in pair["labels"][len(prompts[0]) :] for pair in pairs)
    )


def _have_room(base: Base, prompts: list[list[int]], answers: list[list[int]]) -> bool:
    """Return whether the longest prompt and the longest answer, both padded, have positions."""
    longest = max(map(len, prompts)) + max(map(len, answers)) - 1
    return base.limits.positions is None or longest <= base.limits.positions


def _continued(
    base: Base, prompts: list[list[int]], answers: list[list[int]], options: int, where: str
) -> list[float]:
    """Return the log-likelihoods of the answers, for each prompt `options` of them."""
    model, device = base.model, next(base.model.parameters()).device
    ids, mask = (tensor.to(device) for tensor in padded(prompts, base.tokenizer, "left"))
    plain = base.network if base.whole else base.peft.get_base_model()
    takes_positions = "position_ids" in signature(plain.forward).parameters
    cache = DynamicCache(config=base.network.config.get_text_config(decoder=True))
    last = torch.zeros_like(mask, dtype=torch.bool)
    last[:, -1] = True

    def run(ids: Tensor, mask: Tensor, positions: Tensor, at: Tensor) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
        if takes_positions:
            inputs["position_ids"] = positions
        logits = run_with_logits_at(model, model, at, use_cache=True, **inputs).logits
        check_logits(logits, where)
        return logits.float()

    first = run(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), last)
    begins = torch.tensor([answer[0] for answer in answers], device=device)
    firsts = -cross_entropy(first.repeat_interleave(options, 0), begins, reduction="none")
    scores = firsts.tolist()
    if max(map(len, answers)) == 1:
        return scores
    cache.batch_repeat_interleave(options)
    # The last token of an answer predicts nothing.
    more, more_mask = (t.to(device) for t in padded([a[:-1] for a in answers], base.tokenizer))
    mask = mask.repeat_interleave(options, 0)
    positions = mask.sum(1, keepdim=True) + torch.arange(more.shape[1], device=device)
    logits = run(more, torch.cat([mask, more_mask], 1), positions, more_mask.bool())
    labels = torch.tensor([i for answer in answers for i in answer[1:]], device=device)
    losses = cross_entropy(logits, labels, reduction="none")
    parts = losses.split([len(answer) - 1 for answer in answers])
    return [score - part.sum().item() for score, part in zip(scores, parts, strict=True)]


def _decoded(
    base: Base, prompts: list[list[int]], answers: list[list[int]], options: int, where: str
) -> list[float]:
    """As `_continued`, for an encoder-decoder."""
    model, device = base.model, next(base.model.parameters()).device
    ids, mask = (tensor.to(device) for tensor in padded(prompts, base.tokenizer))
    encoded = base.network.get_encoder()(input_ids=ids, attention_mask=mask)
    encoded.last_hidden_state = encoded.last_hidden_state.repeat_interleave(options, 0)
    labels, answer_mask = (tensor.to(device) for tensor in padded(answers, base.tokenizer))
    labels = labels.masked_fill(answer_mask == 0, IGNORED)
    logits = run_with_logits_at(
        model,
        model,
        answer_mask.bool(),
        encoder_outputs=encoded,
        attention_mask=mask.repeat_interleave(options, 0),
        decoder_input_ids=decoder_inputs(model, labels),
    ).logits
    check_logits(logits, where)
    losses = cross_entropy(logits.float(), labels[answer_mask.bool()], reduction="none")
    return [-part.sum().item() for part in losses.split([len(answer) for answer in answers])]
