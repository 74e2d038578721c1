"""What is measured of a checkpoint while it is folded into a state, or taken out of it.

All numbers are sums over pieces of tensors. They are kept with each tensor that is complete, so a
merge that goes on after a stop has them as well.

The interference of an arrival tells how its task vector tau stands to M, the merged task vector
before it, over all elements i of a layer or of the model:

    cosine = sum_i tau_i M_i / (|tau| |M|)
    against = sum_{i: tau_i M_i < 0} |tau_i| / sum_i |tau_i|

`against` is the share of the change, by magnitude, that has the opposite sign.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from perdure.merging.magnitude import dot
from perdure.merging.rule import Arrival, Arrived, Rule, State


# Among the facts about a tensor: the square of the norm of what was rounded off.
ROUNDING = "rounding"
# The inner product of the two task vectors, their squares, and the two sums of `against`.
PRODUCT, ARRIVAL, MERGED, AGAINST, TOTAL = "product", "arrival", "merged", "against", "total"
OTHER = "other"  # the name of what is in no layer: embeddings, the last norm, the head
STACKS = ("encoder", "decoder")
Facts = Mapping[str, float]


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
        if self.before and not self.removes:
            merged = self.rule.merged(before, self.before)
            for name, value in compared(tau, merged).items():
                self._add(name, value)

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
        error = error.double()  # whose squares would underflow in fp32
        square += dot(error, error)
    return square


def compared(tau: Tensor, merged: Tensor) -> dict[str, float]:
    """Return the sums of a piece of an arrival and of what was merged before it."""
    size, opposite = tau.abs(), (tau * merged < 0).to(tau.dtype)
    return {
        PRODUCT: dot(tau, merged),
        ARRIVAL: dot(tau, tau),
        MERGED: dot(merged, merged),
        AGAINST: dot(size, opposite),
        TOTAL: dot(size, torch.ones_like(size)),
    }


def interference(facts: Mapping[str, Facts]) -> dict[str, Any] | None:
    """Return the interference of an arrival, None if nothing was merged before it.

    Args:
        facts: the sums over each tensor or module, by name.

    Returns:
        `cosine` and `against` of the whole model, and `layers`, which has the same two of each
        layer. They are 0 where one of the task vectors is zero.
    """
    known = {name: sums for name, sums in facts.items() if PRODUCT in sums}
    if not known:
        return None
    stacks = {_layer(name)[0] for name in known} - {""}
    by_layer: dict[tuple[str, int], list[Facts]] = {}
    for name, sums in known.items():
        by_layer.setdefault(_layer(name), []).append(sums)
    layers = {}
    for (stack, number), parts in by_layer.items():
        name = f"{stack} {number}" if len(stacks) > 1 else f"{number}"
        layers[OTHER if number < 0 else name] = list(_shares(parts))
    cosine, against = _shares(known.values())
    return {"cosine": cosine, "against": against, "layers": layers}


def _layer(name: str) -> tuple[str, int]:
    """Return the stack (encoder, decoder or none) and the layer of a tensor, -1 if in none."""
    parts = name.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if index is None:
        return "", -1
    return next((part for part in parts[:index] if part in STACKS), ""), int(parts[index])


def _shares(parts: Iterable[Facts]) -> tuple[float, float]:
    """Return the cosine and the share of opposite signs of some parts together."""
    parts = list(parts)
    sums = {
        key: math.fsum(part[key] for part in parts)
        for key in (PRODUCT, ARRIVAL, MERGED, AGAINST, TOTAL)
    }
    norms = math.sqrt(sums[ARRIVAL] * sums[MERGED])
    cosine = max(-1.0, min(1.0, sums[PRODUCT] / norms)) if norms else 0.0
    against = sums[AGAINST] / sums[TOTAL] if sums[TOTAL] else 0.0
    return round(cosine, 4), round(against, 4)


def rounding(tensors: Iterable[Facts]) -> float:
    """Return the norm of what was rounded off, from the facts about all tensors."""
    return math.sqrt(sum(facts.get(ROUNDING, 0.0) for facts in tensors))
