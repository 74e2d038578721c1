"""Which tensors of a model have rows for tokens: input embeddings, the output layer, its bias.

They are those whose shape changes when the `vocab_size` of the config does.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from perdure.errors import PerdureError
from perdure.merging.checkpoint import Stored
from perdure.models.kinds import Kind
from perdure.models.limits import skeleton


SIZE = "vocab_size"
# Numbers of other rows than those of tokens, such as the two segments of a text of BERT's.
NO_TOKENS = {"type_vocab_size", "task_type_vocab_size"}


def token_axes(config: Any, kind: Kind, stored: Mapping[str, Stored], name: str) -> dict[str, int]:
    """Return which tensors of a model's files have a row for each token, with the axis of rows.

    Args:
        config: the config of the model.
        kind: its kind.
        stored: the tensors of its files.
        name: its name.

    Raises:
        PerdureError: it is not known which have.
    """
    other = next((key for key in _sizes(config.to_dict()) if key != SIZE), None)
    if other is not None:
        raise PerdureError(
            f"{name}: has a second vocabulary ({other} in its config.json), and only models "
            "of one can be aligned by token"
        )
    ours, larger = _shapes(config, kind, name, more=0), _shapes(config, kind, name, more=1)
    count, prefix = config.get_text_config().vocab_size, ours.prefix
    axes: dict[str, int] = {}
    for tensor, one in sorted(stored.items()):
        # The files of an encoder's or a decoder's bare body have no prefix, or have one too many.
        names = (tensor, tensor.removeprefix(prefix), f"{prefix}{tensor}")
        known = next((known for known in names if known in ours.shapes), None)
        changes = [] if known is None else _changes(ours.shapes[known], larger.shapes[known])
        unclear = known is None and count in one.shape
        if unclear or len(changes) > 1 or (changes and set(one.shape[: changes[0]]) - {1}):
            raise PerdureError(
                f"{name}: it is not known which rows of its {tensor} are which tokens, so its "
                "vocabulary cannot be aligned"
            )
        if changes and one.is_float:
            axes[tensor] = changes[0]
    if not axes:
        raise PerdureError(
            f"{name}: none of its tensors is known to have rows for tokens, so its vocabulary "
            "cannot be aligned"
        )
    return axes


class _Shapes(NamedTuple):
    """The shapes of an architecture's tensors by name, and the prefix of those of its body."""

    shapes: dict[str, tuple[int, ...]]
    prefix: str


def _shapes(config: Any, kind: Kind, name: str, more: int) -> _Shapes:
    """Return the shapes of an architecture with some tokens more than its config has.

    Raises:
        PerdureError: they are not known.
    """
    larger = copy.deepcopy(config)
    text = larger.get_text_config()
    model = None
    if getattr(text, SIZE, None) is not None:
        text.vocab_size += more
        model = skeleton(larger, kind)
    if model is None:
        raise PerdureError(f"{name}: the rows of its architecture cannot be aligned by token")
    shapes = {tensor: tuple(one.shape) for tensor, one in model.state_dict().items()}
    return _Shapes(shapes, f"{model.base_model_prefix}.")


def _changes(shape: tuple[int, ...], other: tuple[int, ...]) -> list[int]:
    """Return the axes in which two shapes differ."""
    return [axis for axis, sizes in enumerate(zip(shape, other, strict=True)) if len({*sizes}) > 1]


def _sizes(config: Any) -> Iterator[str]:
    """Yield the keys of a config, and of configs in it, that are sizes of a vocabulary."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if SIZE in str(key) and key not in NO_TOKENS and value is not None:
                yield str(key)
            yield from _sizes(value)
