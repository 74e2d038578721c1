"""How deep a tensor stands in a model, by the first number in its name."""

from collections.abc import Iterable


class Layers:
    """The stacks of numbered layers of a model, such as `model.layers` or `encoder.block`.

    Args:
        names: the names of all tensors of the model.
    """

    def __init__(self, names: Iterable[str]):
        self.counts: dict[str, int] = {}  # how many layers a stack has
        for name in names:
            stack, number = _layer(name)
            if number is not None:
                self.counts[stack] = max(self.counts.get(stack, 0), number + 1)

    def depth(self, name: str) -> float | None:
        """Return l / (L - 1) for a tensor of layer l = 0, ..., L - 1 of its stack.

        It is None for a tensor outside of numbered layers, and in a stack of a single layer.
        """
        stack, number = _layer(name)
        count = self.counts.get(stack, 0)
        return None if number is None or count < 2 else number / (count - 1)


def _layer(name: str) -> tuple[str, int | None]:
    """Return the stack of a tensor and the number of its layer, None if it is in no layer."""
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        if place and part.isdecimal():
            return ".".join(parts[:place]), int(part)
    return "", None
