"""How many positions and token ids a base has, found by trial.

The trials run on the base's architecture without its weights. The model is on the meta device, and
only the parameters before the first layer get memory, which is never written. A forward pass that
reaches the first layer has looked up all its tokens and positions, so it is stopped there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel

from perdure.models.kinds import AUTO, Kind
from perdure.seeds import forked


# Keys of a config under which a base may declare its number of positions, which is then tried.
DECLARED = ("max_position_embeddings", "max_seq_len", "n_positions")
DECLARED_ENCODER = ("max_encoder_position_embeddings", *DECLARED)
DECLARED_DECODER = ("max_decoder_position_embeddings", *DECLARED)
UNDECLARED = 512  # the number of positions that is tried if a base declares none
SHORT = 4  # a number of tokens that every base takes
# The most numbers in the embeddings of a text that is tried; tables of positions are far smaller.
MOST_TRIED = 2**26


@dataclass(frozen=True)
class Limits:
    """The limits of a base.

    Args:
        positions: the most tokens of a text; for a causal base prompt and answer together, for an
            encoder-decoder the prompt. None if there is no limit.
        answer_positions: the most tokens of the decoder of an encoder-decoder, None if there is no
            limit.
        tokens: the number of token ids that have an embedding, None if it is unknown.
    """

    positions: int | None = None
    answer_positions: int | None = None
    tokens: int | None = None


_KNOWN: dict[str, Limits] = {}


def limits(config: Any, kind: Kind) -> Limits:
    """Return the limits of a base with this config. They are tried once per process."""
    key = config.to_json_string(use_diff=False)
    if key not in _KNOWN:
        _KNOWN[key] = _limits(config, kind)
    return _KNOWN[key]


def _limits(config: Any, kind: Kind) -> Limits:
    model = skeleton(config, kind)
    if model is None:  # it cannot be built without weights, so the config has to be trusted
        return Limits(
            positions=_declared(config, DECLARED_ENCODER),
            answer_positions=_declared(config, DECLARED_DECODER),
            tokens=None,
        )
    tokens = _tokens(model)
    _allocate_before_layers(model)
    if kind != "seq2seq":
        return Limits(
            positions=_tried(config, DECLARED, model), answer_positions=None, tokens=tokens
        )
    return Limits(
        positions=_tried(config, DECLARED_ENCODER, model.get_encoder()),
        answer_positions=_tried(config, DECLARED_DECODER, model.get_decoder()),
        tokens=tokens,
    )


def skeleton(config: Any, kind: Kind) -> PreTrainedModel | None:
    """Build a model whose parameters have no memory, or return None if that is not possible."""
    try:
        # Buffers have memory, because a table of positions may be one.
        with init_empty_weights(include_buffers=False), forked(0):
            return AUTO[kind].from_config(config).eval()
    except Exception:  # constructors raise anything; loading the base will report what is wrong
        return None


class _Reached(Exception):  # noqa: N818  # not an error
    """Raised when the first layer is called."""


def _stop(module: nn.Module, args: Any) -> None:
    raise _Reached


def _allocate_before_layers(model: nn.Module) -> None:
    """Allocate the parameters outside of all lists of layers, and stop at any layer in a list."""
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
            if parameter.device.type == "meta":  # not zeros, which would write every page
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(empty, requires_grad=False)


def _declared(config: Any, names: tuple[str, ...]) -> int | None:
    """Return the number of positions that the config declares."""
    text = config.get_text_config()
    return next((n for n in (getattr(text, name, None) for name in names) if n), None)


def _tried(config: Any, names: tuple[str, ...], model: Callable[..., Any]) -> int | None:
    """Return the largest number of tokens, up to the declared one, that the model takes."""
    declared = _declared(config, names)
    most = declared or UNDECLARED
    width = getattr(config.get_text_config(), "hidden_size", 1)
    if most * width > MOST_TRIED or not _takes(model, SHORT) or _takes(model, most):
        return declared
    taken, not_taken = SHORT, most
    while not_taken - taken > 1:
        # First try two less, the limit of families that count positions from the padding id on.
        middle = max(not_taken - 2, taken + 1) if not_taken == most else (taken + not_taken) // 2
        if _takes(model, middle):
            taken = middle
        else:
            not_taken = middle
    return taken


def _takes(model: Callable[..., Any], length: int) -> bool:
    """Return whether a text of `length` tokens reaches the first layer."""
    # SHORT is also a valid token id, and not that of padding, which may not count as a position.
    try:
        with torch.no_grad():
            model(input_ids=torch.full((1, length), SHORT))
    except _Reached:
        return True
    except Exception:  # IndexError, RuntimeError or ValueError, depending on the kind of table
        return False
    return True


def _tokens(model: PreTrainedModel) -> int | None:
    """Return the number of rows of the input or the output embeddings, the smaller one."""
    rows = []
    for get_embeddings in (model.get_input_embeddings, model.get_output_embeddings):
        try:
            weight = getattr(get_embeddings(), "weight", None)
        except (NotImplementedError, AttributeError):  # CANINE reads characters
            continue
        if weight is not None and weight.dim() == 2:
            rows.append(weight.shape[0])
    return min(rows, default=None)
