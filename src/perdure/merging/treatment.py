"""What a treatment of the merged task vector is: a change of it after the fold.

A treatment works on one tensor at a time, after the rule has merged it, and changes only what is
written. The state of the rule stays as it was, so that the next checkpoint arrives in it as if
nothing had been treated.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from perdure.merging.rule import Place


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """How a merged task vector is changed before it is added to the base.

    A treatment is a frozen dataclass, whose fields are its keywords. It declares:

        paper: the address of its paper, None if there is none.
        neutral: the values of keywords with which it changes nothing, not even a bit.
        whole: whether it needs a whole matrix at a time, not pieces of it.
        work: about how many further tensors of a matrix's size it has in memory.
        scales: whether it only multiplies each tensor by a number (`factor`). Only such treatments
            leave a LoRA adapter a LoRA adapter.
    """

    paper: ClassVar[str | None] = None
    neutral: ClassVar[dict[str, Any]] = {}
    whole: ClassVar[bool] = False
    work: ClassVar[int] = 1
    scales: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The name under which the treatment is found: that of its module."""
        return type(self).__module__.rpartition(".")[2]

    def check(self, places: Sequence[Place]) -> None:
        """Check that a model with these tensors can be treated.

        Raises:
            PerdureError: it cannot.
        """

    def factor(self, depth: float | None) -> float:
        """Return by what a tensor is multiplied, if the treatment `scales`.

        Args:
            depth: how deep the tensor stands (`Place.depth`).
        """
        raise NotImplementedError

    def treat(self, tau: Tensor, base: Tensor, place: Place) -> Tensor:
        """Return the treated task vector.

        Args:
            tau: the merged task vector of a tensor or a piece of it, in the rule's data type.
            base: the base's weights there.
            place: which tensor it is.
        """
        return self.factor(place.depth) * tau


def values_of(treatments: Sequence[Treatment]) -> list[dict[str, dict[str, Any]]]:
    """Return treatments as mappings of a name to the values of all keywords, in their order.

    It is a list, because a mapping in JSON has no order, and that of treatments matters.
    """
    return [{treatment.name: asdict(treatment)} for treatment in treatments]
