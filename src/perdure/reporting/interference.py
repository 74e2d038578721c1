"""The interference of the checkpoints that were merged, for `show` and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


SHOWN = 6  # the most layers that are named in words
MEANING = (
    "The cosine between the change of a checkpoint and all that was merged before it, and the "
    "share of that change, by magnitude, whose sign is the opposite of what was merged"
)


@dataclass(frozen=True)
class Layer:
    """The interference in a layer: its name, the cosine, the share of opposite signs."""

    name: str
    cosine: float
    against: float


@dataclass(frozen=True)
class Interference:
    """The interference of one arrival.

    Args:
        stage: the stage into which it was merged.
        task: the name of its task.
        cosine: the cosine with what was merged before.
        against: the share of its change that has the opposite sign, by magnitude.
        layers: the same two of each layer, in order.
    """

    stage: int
    task: str
    cosine: float
    against: float
    layers: tuple[Layer, ...]

    @property
    def words(self) -> str:
        """Return the two numbers of the whole model, in words."""
        return (
            f"cosine {self.cosine:.2f} with what was merged before; {self.against:.0%} of its "
            "change has the opposite sign"
        )

    @property
    def by_layer(self) -> str:
        """Return those of the layers in which most of the change has the opposite sign."""
        most = sorted(self.layers, key=lambda layer: -layer.against)[:SHOWN]
        shown = [layer for layer in self.layers if layer in most]
        parts = (f"{layer.name}: {layer.cosine:.2f}, {layer.against:.0%}" for layer in shown)
        some = f" (the {len(shown)} most opposite of {len(self.layers)})"
        return "; ".join(parts) + some * (len(shown) < len(self.layers))


def interference_of(entry: Mapping[str, Any]) -> Interference | None:
    """Return the interference in a stage's line of the ledger, None if it has none."""
    measured = entry.get("interference")
    if measured is None:
        return None
    pairs = sorted(measured["layers"].items(), key=_order)
    return Interference(
        stage=entry["stage"],
        task=entry["task"]["id"],
        cosine=measured["cosine"],
        against=measured["against"],
        layers=tuple(Layer(name, *values) for name, values in pairs),
    )


def _order(item: tuple[str, Sequence[float]]) -> tuple[bool, str, int]:
    """Return the place of a layer among the others: by stack and number, `other` at the end."""
    stack, _, number = item[0].rpartition(" ")
    is_layer = number.isdecimal()
    return not is_layer, stack, int(number) if is_layer else 0
