"""What a rule of merging is: a fold over the task vectors of the checkpoints that arrive.

The task vector of a checkpoint is its difference from the base, tau = theta - theta_0. A rule keeps
a state, folds one more task vector into it (`arrive`), and turns it into the merged task vector
(`merged`). Merging T checkpoints at once is T arrivals, so the state decides what one more arrival
costs: with none of the rules it grows with T, but for a few numbers for each arrival.

Rules work on one tensor at a time, and those that look at each element alone on a piece of it. They
are pure: the state that is passed in is not changed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from perdure.errors import PerdureError


State = dict[str, Tensor]
Pieces = Callable[[], Iterator[Tensor]]
# The state before an arrival, its task vector, and the base's weights, piece by piece.
Pasts = Callable[[], Iterator[tuple[State, Tensor, Tensor]]]
# What a tensor is for: the weights of a linear layer or packed experts; a table of embeddings; or
# biases, norms and scalars.
Role = Literal["matrix", "embedding", "vector"]


class Place(NamedTuple):
    """A tensor of a model.

    Args:
        tensor: its name.
        shape: its shape.
        role: what it is for (`Role`).
        depth: where its layer stands, from 0 for the first of its stack to 1 for the last; None
            if it is in no numbered layer.
        transposed: whether it is stored as [d_in, d_out], as GPT-2 does with its linear layers.
    """

    tensor: str
    shape: tuple[int, ...]
    role: Role
    depth: float | None = None
    transposed: bool = False


@dataclass(frozen=True)
class Arrived:
    """What is remembered of a checkpoint that was merged.

    Args:
        weight: its weight, None if none was given.
        norm: the Frobenius norm of its whole task vector.
    """

    weight: float | None
    norm: float


@dataclass(frozen=True)
class Arrival:
    """A checkpoint that arrives, and where in it a piece of a task vector stands.

    Args:
        number: how many checkpoints have arrived with it, from 1.
        weight: its weight, None if none was given.
        identity: the hash of the checkpoint, which seeds random draws.
        tensor: the name of the tensor.
        shape: the shape of the whole tensor.
        role: what the tensor is for.
        offset: the number of the tensor's elements before the piece.
        seen: what the rule has seen of the whole tensor (`Rule.look` and `Rule.look_back`).
        base: the base's weights at the same place, if the rule needs them.
        transposed: whether the tensor is stored as [d_in, d_out] (`Place.transposed`).
        statistic: what was measured of the checkpoint there, if the rule `needs` it; None for a
            tensor of which nothing was measured.
    """

    number: int = 1
    weight: float | None = None
    identity: str = ""
    tensor: str = ""
    shape: tuple[int, ...] = ()
    role: Role = "matrix"
    offset: int = 0
    seen: dict[str, float] = field(default_factory=dict)
    base: Tensor | None = None
    transposed: bool = False
    statistic: Tensor | None = None

    @property
    def factor(self) -> float:
        """The weight, 1 if none was given."""
        return 1.0 if self.weight is None else self.weight


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How merging folds one more checkpoint into what was merged before.

    A rule is a frozen dataclass, whose fields are its keywords. It declares:

        paper: the address of its paper, None if there is none.
        state: the names of the tensors of its state, which have the weights' size (`shape_of`).
        scalars: the names of those that are single numbers.
        work: about how many further tensors of a piece's size it has in memory while it folds.
        order_matters: whether the order of arrivals changes the result by more than rounding.
        idempotent: whether many copies of a checkpoint give what one gives.
        can_undo: whether `undo` can remove an arrival.
        linear: whether the merged task vector is a sum of the arrivals' ones, with coefficients
            that do not depend on them. Only such rules merge LoRA adapters to a LoRA adapter.
        whole: whether it needs a whole tensor at a time, not pieces of it.
        rescales: whether the merged task vector is scaled at the end (`scale_of`).
        weighted: whether checkpoints may have weights.
        learns: whether the weights of checkpoints are learned on rows, where none are given.
        needs: the statistics of each checkpoint that it needs, `fisher` or `gram`; None without.

    Args:
        exact: keep the state in fp64 instead of fp32. Sums of bf16 and fp16 task vectors with
            weights that are powers of two are then exact: their order does not matter, and `undo`
            restores the bits of the state.
    """

    paper: ClassVar[str | None] = None
    state: ClassVar[tuple[str, ...]] = ("sum",)
    scalars: ClassVar[tuple[str, ...]] = ()
    work: ClassVar[int] = 6
    order_matters: ClassVar[bool] = False
    idempotent: ClassVar[bool] = False
    can_undo: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    rescales: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    weighted: ClassVar[bool] = True
    learns: ClassVar[bool] = False
    needs: ClassVar[str | None] = None

    exact: bool = False

    @property
    def name(self) -> str:
        """The name under which the rule is found: that of its module."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def dtype(self) -> torch.dtype:
        """The data type of task vectors and of the state."""
        return torch.float64 if self.exact else torch.float32

    def shape_of(self, kind: str, place: Place) -> tuple[int, ...]:
        """Return the shape of a tensor of the state (`state`, `scalars`) for a tensor."""
        return () if kind in self.scalars else place.shape

    def beside(self, place: Place) -> int:
        """Return how many numbers it has in memory beside what is of the tensor's size."""
        return 0

    def look(self, pieces: Pieces, arrival: Arrival) -> dict[str, float]:
        """Return what `arrive` must know of a whole task vector of a tensor, from its pieces."""
        return {}

    def look_back(self, pasts: Pasts, arrival: Arrival) -> dict[str, float]:
        """Return what `arrive` must know of a whole tensor of what was merged before it.

        With T checkpoints at once, what was merged before each is computed again for this.
        """
        return {}

    def arrive(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        """Return the state with one more checkpoint folded into it.

        Args:
            state: the state, empty before the first arrival.
            tau: the task vector of a tensor or a piece of it, in the rule's data type.
            arrival: what is known of the checkpoint.
        """
        raise NotImplementedError

    def undo(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        """Return the state without a checkpoint that had arrived, the inverse of `arrive`.

        Raises:
            PerdureError: the rule cannot take an arrival back.
        """
        if not self.can_undo:
            raise PerdureError(
                f"{self.name}: an arrival cannot be taken out of its state; go back to the stage "
                "before it with `perdure revert`, and merge the later checkpoints again"
            )
        return self._without(state, tau, arrival)

    def _without(self, state: State, tau: Tensor, arrival: Arrival) -> State:
        raise NotImplementedError

    def merged(self, state: State, history: Sequence[Arrived]) -> Tensor:
        """Return the merged task vector of a tensor or a piece of it.

        Args:
            state: the state after all arrivals; there was at least one.
            history: the arrivals, in their order.
        """
        raise NotImplementedError

    def scale_of(self, history: Sequence[Arrived], norm: float) -> float:
        """Return by what the merged task vector is multiplied, if the rule `rescales`.

        Args:
            history: the arrivals, in their order.
            norm: the Frobenius norm of the whole merged task vector.
        """
        return 1.0

    def coefficients(self, history: Sequence[Arrived]) -> list[float]:
        """Return by what each task vector is multiplied in the sum, if the rule is `linear`."""
        raise NotImplementedError

    def check_weights(self, weights: Sequence[float | None]) -> None:
        """Check the weights of all checkpoints, None for one without.

        Raises:
            PerdureError: the rule has no weights, or cannot work with these.
        """
        if not self.weighted and any(weight is not None for weight in weights):
            raise PerdureError(f"{self.name}: takes no weights; leave them out")


def added(state: State, key: str, value: Tensor) -> Tensor:
    """Return the tensor of a state with a value added, the value itself if there is none yet."""
    return state[key] + value if key in state else value


def check_range(
    rule: Rule,
    key: str,
    least: float = 0.0,
    most: float = float("inf"),
    above: float = -float("inf"),
) -> None:
    """Check that a keyword is in `least` <= value <= `most`, and more than `above`.

    Raises:
        PerdureError: it is not.
    """
    value = getattr(rule, key)
    if not (least <= value <= most and value > above):
        lower = f"> {above:g}" if above >= least else f">= {least:g}"
        upper = "" if most == float("inf") else f" and <= {most:g}"
        raise PerdureError(f"{rule.name}: {key} must be {lower}{upper}, got {value:g}")


def positive_weights(rule: Rule, weights: Sequence[float | None]) -> None:
    """Check that all weights are more than 0.

    Raises:
        PerdureError: one is not.
    """
    for weight in weights:
        if weight is not None and weight <= 0:
            raise PerdureError(f"{rule.name}: a weight must be > 0, got {weight:g}")
