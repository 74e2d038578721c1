"""Whether the files of a base have exactly the weights of its model.

transformers fills weights that the files lack with random numbers, and leaves out tensors that the
model does not know. Both are silent on the command line, and the model then answers nonsense.
"""

import re
from collections.abc import Collection
from typing import Any

from transformers import PreTrainedModel

from perdure.errors import PerdureError
from perdure.models.kinds import Kind


def check_whole(name: str, model: PreTrainedModel, loading: dict[str, Any], kind: Kind) -> None:
    """Check that no weight of a model was missing in its files, or of another shape there.

    An encoder may lack its pooler: the head reads the mean of the hidden states instead.

    Args:
        name: the base's name or folder, for the error line.
        model: the model.
        loading: what `from_pretrained` returned with `output_loading_info=True`.
        kind: the kind of model.

    Raises:
        PerdureError: a weight is missing or has another shape; the line names the first.
    """
    if loading["mismatched_keys"]:
        raise PerdureError(_misfit(name, model, loading["mismatched_keys"]))
    computed = {key for key, _ in model.named_buffers()}
    missing = set(loading["missing_keys"]) - computed
    if kind == "encoder":
        missing = {key for key in missing if not is_pooler(key)}
    if not missing:
        return
    line = (
        f"base {name!r}: {_counted(missing, 'weight')} of the model "
        f"{'is' if len(missing) == 1 else 'are'} not in its files (first: {_first(missing)}), and "
        "would be random numbers"
    )
    if unknown := loading["unexpected_keys"]:
        line += f"; {_unknown(unknown)}"
    raise PerdureError(f"{line}; give a whole base, whose config.json belongs to its weights")


def is_pooler(key: str) -> bool:
    """Return whether a weight of an encoder is of its pooler, which the head does not read."""
    return "pooler" in key.split(".")


def warning_of_unused(
    name: str, model: PreTrainedModel, loading: dict[str, Any], kind: Kind
) -> str | None:
    """Return a warning about tensors of a base's files that its model does not have, or None.

    The files of an encoder usually have the head of its pretraining, which is not used. So of an
    encoder's tensors only those count that are named as the model's own weights, such as those of
    more layers than config.json has.
    """
    unknown = set(loading["unexpected_keys"])
    if kind == "encoder":
        own = {_without_numbers(key) for key in model.state_dict()}
        prefix = f"{model.base_model_prefix}."
        unknown = {key for key in unknown if _without_numbers(key.removeprefix(prefix)) in own}
    if not unknown:
        return None
    return (
        f"warning: base {name!r}: {_unknown(unknown)}, and not used; if the model should have "
        "them, correct its config.json"
    )


def _misfit(name: str, model: PreTrainedModel, mismatched: Collection[Any]) -> str:
    """The error line for weights of another shape than the config's: (key, stored, expected)."""
    key, stored, expected = min((key, tuple(one), tuple(other)) for key, one, other in mismatched)
    shapes = [" x ".join(map(str, shape)) for shape in (stored, expected)]
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None)
    rows, wanted = stored[:1], expected[:1]
    if stored[1:] == expected[1:] and rows != wanted and wanted == (vocabulary,):
        reason = f"vocab_size is {vocabulary} in config.json, but {key} has {rows[0]} rows"
    else:
        reason = f"{key} is {shapes[0]} in its files, but {shapes[1]} according to config.json"
    more = f" ({_counted(mismatched, 'weight')} of another shape)" if len(mismatched) > 1 else ""
    return f"base {name!r}: {reason}{more}; give a whole base, whose config.json fits its weights"


def _unknown(keys: Collection[str]) -> str:
    verb = "is" if len(keys) == 1 else "are"
    return (
        f"{_counted(keys, 'tensor')} of its files {verb} unknown to the model (first: "
        f"{_first(keys)})"
    )


def _counted(keys: Collection[Any], noun: str) -> str:
    return f"{len(keys)} {noun}{'' if len(keys) == 1 else 's'}"


def _first(keys: Collection[str]) -> str:
    """The first key where a model has it: layer 2 is before layer 10."""
    return min(keys, key=lambda key: re.sub(r"\d+", lambda number: number[0].zfill(9), key))


def _without_numbers(key: str) -> str:
    return re.sub(r"\d+", "#", key)
