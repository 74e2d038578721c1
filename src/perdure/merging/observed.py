"""What is measured of a checkpoint while it is folded into a state, or taken out of it.

All numbers are sums over pieces of tensors. They are kept with each tensor that is complete, so a
merge that goes on after a stop has them as well.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from perdure.merging.magnitude import dot
from perdure.merging.rule import Arrival, Arrived, Rule, State


ROUNDING = "rounding"  # the square of the norm of what was rounded off, among a tensor's facts


@dataclass
class Observer:
    """Measures a checkpoint in one tensor.

    Args:
        rule: the rule.
        before: the arrivals in the state before the checkpoint, or with it if it is taken out.
        removes: whether the checkpoint is taken out.
        facts: the sums so far, by name.
    """

    rule: Rule
    before: Sequence[Arrived]
    removes: bool = False
    facts: dict[str, float] = field(default_factory=dict)

    def see(self, before: State, tau: Tensor, arrival: Arrival, after: State) -> None:
        """Measure a piece of the tensor.

        Args:
            before: the state of the piece before the checkpoint.
            tau: the checkpoint's task vector there.
            arrival: the checkpoint, and where the piece stands.
            after: the state after it.
        """
        if self.rule.can_undo:
            change = self.rule.arrive({}, tau, arrival)
            self._add(ROUNDING, rounded_off(before, change, after, -1 if self.removes else 1))

    def _add(self, name: str, value: float) -> None:
        self.facts[name] = self.facts.get(name, 0.0) + value


def rounded_off(before: State, change: State, after: State, sign: int) -> float:
    """Return the sum of squares of the rounding errors in after = before + sign change.

    The error of each sum is known exactly (Knuth's TwoSum), and is zero if nothing was rounded.
    """
    square = 0.0
    for key, total in after.items():
        if key not in before:  # the first arrival is the state as it is
            continue
        one, other = before[key], sign * change[key]
        rounded = total - one
        error = (one - (total - rounded)) + (other - rounded)
        square += dot(error, error)
    return square


def rounding(tensors: Iterable[Mapping[str, float]]) -> float:
    """Return the norm of what was rounded off, from the facts about all tensors."""
    return math.sqrt(sum(facts.get(ROUNDING, 0.0) for facts in tensors))
