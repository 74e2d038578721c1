"""LiNeS: the merged task vector is scaled by the depth of each layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from perdure.errors import PerdureError
from perdure.merging.rule import Place
from perdure.merging.treatment import Treatment


@dataclass(frozen=True, kw_only=True)
class Lines(Treatment):
    """Scales the change of each layer by its depth, least in the first layers.

        tau'_l = (alpha + beta l / (L - 1)) tau_l,    l = 0, ..., L - 1

    LiNeS (Wang et al. 2024, 2410.17146): the first layers hold what all tasks share, so that their
    changes are what forgets most. As in the authors' code, everything outside of the layers
    (embeddings, the output layer, the last norm) is scaled by alpha.

    The layer is the first number in a tensor's name, and L counts the layers of the same stack:
    encoder and decoder each have their own first and last layer. A stack of a single layer, as in
    ALBERT, is scaled by alpha.

    To keep what a single checkpoint has learned, the authors take beta = 1 - alpha, as the defaults
    do. To merge T checkpoints by `task_arithmetic`, they take alpha = 1 / T and choose beta on
    held-out rows.

    Args:
        alpha: the scale of the first layer and of what is outside of layers, >= 0.
        beta: what the scale of the last layer has more than that of the first; alpha + beta >= 0.
    """

    paper: ClassVar[str | None] = "https://huggingface.co/papers/2410.17146"
    neutral: ClassVar[dict[str, Any]] = {"alpha": 1.0, "beta": 0.0}
    scales: ClassVar[bool] = True

    alpha: float = 0.5
    beta: float = 0.5

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.alpha + self.beta < 0:
            raise PerdureError(
                f"lines: alpha and alpha + beta must be >= 0, got {self.alpha:g} and "
                f"{self.alpha + self.beta:g}"
            )

    def check(self, places: Sequence[Place]) -> None:
        if all(place.depth is None for place in places):
            raise PerdureError(
                "lines: no tensor of the base is in a numbered layer, such as layers.0 and "
                "layers.1, so that there is no depth to scale by; leave --after lines out"
            )

    def factor(self, depth: float | None) -> float:
        return self.alpha + self.beta * (depth or 0.0)
