"""In which order the methods of a list begin and end a task, whatever their order in the list.

    begin   phase 0: most; they see the weights with which the stage before ended (a teacher, an
                     earlier self to average with, a base to return to)
            phase 1: those that change these weights, or which of them are trained
    end     phase 0: most; what changes weights does so in the order of the list
            phase 1: those that let weights be trained again
            phase 2: those that measure the weights with which the stage ends, or keep them

Within a phase the list's order holds. Events of the Trainer and the hooks of a step come in the
list's order throughout.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from torch import nn

from engram.train.method import Method, TaskContext
from engram.train.parameters import Named, snapshot


def begin_task(
    methods: Sequence[Method], model: nn.Module, context: Callable[[Method], TaskContext]
) -> nn.Module:
    """Call `begin_task` of all methods, each with its own context; the model to train."""
    for method in sorted(methods, key=lambda method: method.begin_phase):
        model = method.begin_task(model, context(method))
    return model


def end_task(methods: Sequence[Method], model: nn.Module) -> None:
    """Call `end_task` of all methods."""
    for method in sorted(methods, key=lambda method: method.end_phase):
        method.end_task(model)


def next_start(methods: Sequence[Method], model: nn.Module) -> Named:
    """Copies of the trained weights as the next task will begin with them.

    To be called in phase 2 of the end of a task.
    """
    with ExitStack() as stack:
        for method in methods:
            stack.enter_context(method.next_start(model))
        return snapshot(model)
