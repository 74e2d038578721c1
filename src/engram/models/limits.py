"""How long a text and which tokens a base takes, found by trying.

The trials run on the base's architecture without its weights: a model on the meta device, of which
only what comes before the first layer is given (untouched, so unread) memory. A forward pass that
reaches the first layer has looked up all its tokens and positions, and stops there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel

from engram.models.kinds import AUTO, Kind
from engram.seeds import forked


# A base says how many positions it has under one of these; what it says is then tried.
SAID = ("max_position_embeddings", "max_seq_len", "n_positions")
SAID_OF_ENCODER = ("max_encoder_position_embeddings", *SAID)
SAID_OF_DECODER = ("max_decoder_position_embeddings", *SAID)
UNSAID = 512  # what is tried of a base that does not say
SHORT = 4  # tokens that every base takes
MOST_TRIED = 2**26  # numbers in the embeddings of a text; tables of positions are far smaller


@dataclass(frozen=True)
class Limits:
    """`positions` of a text (of a causal base: prompt and answer; of an encoder-decoder: the
    prompt), `answer_positions` of the decoder of an encoder-decoder, None where there is no end;
    `tokens` is how many token ids there are, None where a base knows none.
    """

    positions: int | None = None
    answer_positions: int | None = None
    tokens: int | None = None


_KNOWN: dict[str, Limits] = {}


def limits(config: Any, kind: Kind) -> Limits:
    """What a base of this architecture takes; it is tried once a process."""
    key = config.to_json_string(use_diff=False)
    if key not in _KNOWN:
        _KNOWN[key] = _limits(config, kind)
    return _KNOWN[key]


def _limits(config: Any, kind: Kind) -> Limits:
    model = skeleton(config, kind)
    if model is None:  # an architecture that cannot be built so: what it says has to do
        said = _said(config, SAID_OF_ENCODER)
        return Limits(said, _said(config, SAID_OF_DECODER), None)
    tokens = _tokens(model)
    _make_what_comes_before_the_layers(model)
    if kind != "seq2seq":
        return Limits(_tried(config, SAID, model), None, tokens)
    return Limits(
        _tried(config, SAID_OF_ENCODER, model.get_encoder()),
        _tried(config, SAID_OF_DECODER, model.get_decoder()),
        tokens,
    )


def skeleton(config: Any, kind: Kind) -> PreTrainedModel | None:
    """A model of that architecture whose parameters have no memory; None if it cannot be built."""
    try:
        # Buffers are real: a table of positions may be one.
        with init_empty_weights(include_buffers=False), forked(0):
            return AUTO[kind].from_config(config).eval()
    except Exception:  # third-party constructors; the base itself says at its loading what is wrong
        return None


class _Reached(Exception):  # noqa: N818  # no error
    """The first layer was called."""


def _stop(module: nn.Module, args: Any) -> None:
    raise _Reached


def _make_what_comes_before_the_layers(model: nn.Module) -> None:
    """Memory for the parameters outside of all lists of layers, and a stop at any such layer."""
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                layer.register_forward_pre_hook(_stop)
                inside |= {id(part) for part in layer.modules()}
    for module in model.modules():
        if id(module) in inside:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.device.type == "meta":  # not zeros: that would touch every page
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(empty, requires_grad=False)


def _said(config: Any, names: tuple[str, ...]) -> int | None:
    """The number of positions as the config says it."""
    text = config.get_text_config()
    return next((n for n in (getattr(text, name, None) for name in names) if n), None)


def _tried(config: Any, names: tuple[str, ...], model: Callable[..., Any]) -> int | None:
    """The largest number of tokens, up to what the config says, that the model takes."""
    said = _said(config, names)
    most = said or UNSAID
    width = getattr(config.get_text_config(), "hidden_size", 1)
    if most * width > MOST_TRIED or not _takes(model, SHORT) or _takes(model, most):
        return said
    taken, not_taken = SHORT, most  # of a family that counts from the padding on: two less
    while not_taken - taken > 1:
        middle = max(not_taken - 2, taken + 1) if not_taken == most else (taken + not_taken) // 2
        if _takes(model, middle):
            taken = middle
        else:
            not_taken = middle
    return taken


def _takes(model: Callable[..., Any], length: int) -> bool:
    """Whether a text of so many tokens reaches the first layer."""
    # A token in the middle of a tiny vocabulary: padding may not count as a position.
    try:
        with torch.no_grad():
            model(input_ids=torch.full((1, length), SHORT))
    except _Reached:
        return True
    except Exception:  # IndexError, RuntimeError, ValueError: each table has its own
        return False
    return True


def _tokens(model: PreTrainedModel) -> int | None:
    """Rows of the embedding, or of the output if these are fewer."""
    rows = []
    for of in (model.get_input_embeddings, model.get_output_embeddings):
        try:
            weight = getattr(of(), "weight", None)
        except (NotImplementedError, AttributeError):  # CANINE reads characters
            continue
        if weight is not None and weight.dim() == 2:
            rows.append(weight.shape[0])
    return min(rows, default=None)
