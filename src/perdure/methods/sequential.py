"""Plain fine-tuning, one task after another: nothing protects the old ones."""

from typing import Any, ClassVar

from perdure.train.method import Family, Method


class Sequential(Method):
    """Fine-tunes on each task in turn, from the weights of the task before.

    It is the lower bound with which the other methods are compared. State: none. Old rows: not
    needed.
    """

    family: ClassVar[Family] = "baseline"
    neutral: ClassVar[dict[str, Any]] = {}
