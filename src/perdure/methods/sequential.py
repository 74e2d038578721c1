"""Plain fine-tuning on one task after another, without protection of the old ones."""

from typing import Any, ClassVar

from perdure.train.method import Family, Method


class Sequential(Method):
    """Fine-tunes on each task in turn, from the weights of the previous stage.

    It is the lower bound with which the other methods are compared. State: none. Old rows: not
    needed.
    """

    family: ClassVar[Family] = "baseline"
    neutral: ClassVar[dict[str, Any]] = {}

    def why_not_sharded(self) -> str | None:
        return None
