"""Plain fine-tuning, one task after another: nothing protects the old ones."""

from typing import Any, ClassVar

from engram.train.method import Family, Method


class Sequential(Method):
    """Plain fine-tuning on each task in turn, from the weights of the task before.

    The lower bound that every other method is measured against. State: none. Old rows: not needed.
    """

    family: ClassVar[Family] = "baseline"
    neutral: ClassVar[dict[str, Any]] = {}
