"""Spherical interpolation, one checkpoint after another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from perdure.errors import PerdureError
from perdure.merging.magnitude import dot
from perdure.merging.rule import Arrival, Arrived, Pasts, Rule, State, check_range


STRAIGHT = 0.9995  # with a larger cosine, the arc is taken for a line


@dataclass(frozen=True, kw_only=True)
class Slerp(Rule):
    """Moves from what was merged so far to the new checkpoint along an arc, in each tensor.

        theta <- sin((1 - t) omega) / sin(omega) theta + sin(t omega) / sin(omega) theta_k

    with omega the angle between the two (Shoemake 1985), whose norms are not made equal. If their
    cosine is beyond 0.9995, or one of them is zero, they are interpolated on a line. The first
    checkpoint is taken as it is. Checkpoints of one base are nearly parallel, so between weights
    slerp is nearly the average; between task vectors it is not.

    State: the merged task vector.

    Args:
        t: how far to go to the new checkpoint, in [0, 1]; null is 1 / k for the k-th. A weight that
            is given for a checkpoint is its t.
        between: what the angle is between: `weights`, or `task_vectors` (as mergekit's nuslerp
            with a base).
    """

    state: ClassVar[tuple[str, ...]] = ("merged",)
    order_matters: ClassVar[bool] = True
    idempotent: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True

    t: float | None = None
    between: Literal["weights", "task_vectors"] = "weights"

    def __post_init__(self) -> None:
        if self.t is not None:
            check_range(self, "t", most=1.0)

    def look_back(self, pasts: Pasts, arrival: Arrival) -> dict[str, float]:
        """Return the coefficients of the two ends of the arc."""
        if arrival.number == 1:
            return {}
        t = arrival.weight if arrival.weight is not None else self.t
        squares, products, new_squares = 0.0, 0.0, 0.0
        for state, tau, base in pasts():
            old, new = state["merged"], tau
            if self.between == "weights":
                old, new = base + old, base + new
            squares += dot(old, old)
            products += dot(old, new)
            new_squares += dot(new, new)
        t = 1.0 / arrival.number if t is None else t
        old_share, new_share = arc(math.sqrt(squares), math.sqrt(new_squares), products, t)
        return {"old": old_share, "new": new_share}

    def arrive(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        if not state:
            return {"merged": tau}
        old, new = arrival.seen["old"], arrival.seen["new"]
        merged = (old * state["merged"]).add_(tau, alpha=new)
        if self.between == "weights" and old + new != 1.0:
            assert arrival.base is not None
            merged.add_(arrival.base, alpha=old + new - 1.0)
        return {"merged": merged}

    def merged(self, state: State, history: Sequence[Arrived]) -> Tensor:
        return state["merged"]

    def check_weights(self, weights: Sequence[float | None]) -> None:
        for weight in weights:
            if weight is not None and not 0 <= weight <= 1:
                raise PerdureError(f"slerp: a weight is its t, in [0, 1], got {weight:g}")


def arc(old_norm: float, new_norm: float, product: float, t: float) -> tuple[float, float]:
    """Return the coefficients of two tensors at the share t of the arc between them.

    Args:
        old_norm: the norm of the one, which has the share 1 - t.
        new_norm: the norm of the other.
        product: their inner product.
        t: the share, in [0, 1].
    """
    norms = old_norm * new_norm
    cosine = product / norms if norms > 0 else 1.0
    if abs(cosine) > STRAIGHT or not math.isfinite(cosine):
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
