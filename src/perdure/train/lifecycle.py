"""The order in which the methods of a list begin and end a task.

    begin   phase 0: most methods. The model has the weights with which the previous stage ended,
                     which a method may copy. A method that reshapes the model, and so comes
                     first in the list (`Method.reshapes`), does so in this phase.
            phase 1: other methods that change the weights, or freeze some of them.
    end     phase 0: most methods. Those that change weights do so in the order of the list.
            phase 1: methods that make frozen weights trainable again.
            phase 2: methods that measure or store the weights with which the stage ends, or whose
                     loss holds until then.

Within a phase, methods are called in the order of the list, as they are for the events of the
Trainer and the hooks of a step.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from torch import nn

from perdure.train.method import Method, TaskContext
from perdure.train.parameters import Named, snapshot


def begin_task(
    methods: Sequence[Method], model: nn.Module, context: Callable[[Method], TaskContext]
) -> nn.Module:
    """Call `begin_task` of all methods, each with its context; return the model to train."""
    for method in sorted(methods, key=lambda method: method.begin_phase):
        model = method.begin_task(model, context(method))
    return model


def end_task(methods: Sequence[Method], model: nn.Module) -> None:
    """Call `end_task` of all methods."""
    for method in sorted(methods, key=lambda method: method.end_phase):
        method.end_task(model)


def next_start(methods: Sequence[Method], model: nn.Module) -> Named:
    """Copies of the trained weights with which the next task will begin.

    It must be called in phase 2 of the end of a task, when all methods have changed the weights.
    """
    with ExitStack() as stack:
        for method in methods:
            stack.enter_context(method.next_start(model))
        return snapshot(model)
