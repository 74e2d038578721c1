"""`follow` is what `learn` and `run` do in all processes but the main one: they learn along."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import torch
from transformers import TrainerCallback

from perdure import processes
from perdure.data.task import Task
from perdure.lineage.lineage import Lineage
from perdure.lineage.sources import general_rows
from perdure.prepare import Plan
from perdure.say import silent
from perdure.train.stage import StagePlan, learn_stage
from perdure.verbs.inputs import memory_of, states_of, training_of


class Order(TypedDict):
    """What the main process tells the others when a stage is to be learned.

    Args:
        position: the position of the stage among all stages of the verb, from 0.
        stage: the number of the stage.
        task: the id of its task.
        checkpoints: the folder of the checkpoints inside the task.
    """

    position: int
    stage: int
    task: str
    checkpoints: str


def follow(
    open_lineage: Callable[[], Lineage],
    plan: Plan,
    stages: Sequence[Sequence[Task]],
    callbacks: Sequence[TrainerCallback],
) -> Lineage:
    """Learn every stage that the main process orders, without scoring or writing anything.

    Args:
        open_lineage: reads the lineage, which the main process may have changed meanwhile.
        plan: the checked plan, the same as the main process has.
        stages: the tasks of each stage of the verb, the new one last.
        callbacks: callbacks of every task's Trainer.

    Returns:
        The lineage as the main process leaves it.

    Raises:
        PerdureError: this process cannot take part.
        EndedError: the main process has ended with an error.
    """
    while (order := processes.hear()) is not None:
        lineage = open_lineage()
        config = lineage.config
        torch.set_num_threads(config.threads or torch.get_num_threads())
        previous = lineage.stages[-1] if lineage.stages and config.mode == "sequential" else None
        base = plan.loader.at(lineage, previous)
        stage_plan = _stage_plan(lineage, plan, stages[order["position"]], order, callbacks)
        learn_stage(base, stage_plan, Path(order["checkpoints"]), None, silent)
        if processes.shard_weights():
            plan.loader.forget()
    return open_lineage()


def _stage_plan(
    lineage: Lineage,
    plan: Plan,
    learned: Sequence[Task],
    order: Order,
    callbacks: Sequence[TrainerCallback],
) -> StagePlan:
    """Return the plan of a stage that is learned as in the main process, but not scored."""
    config = lineage.config
    previous = lineage.stages[-1] if lineage.stages and config.mode == "sequential" else None
    general = []
    if config.general.file is not None:
        general = list(general_rows(config, learned[-1], order["stage"]).rows)
    unscored = replace(
        config,
        scoring=replace(config.scoring, forward=False),
        memory=replace(config.memory, ratio=0.0),  # the main process chooses what is remembered
    )
    return StagePlan(
        stage=order["stage"],
        task=order["task"],
        learn=learned,
        score={},
        memory=memory_of(lineage, general, with_old_tasks=previous is not None),
        config=unscored,
        methods=plan.methods,
        arguments=plan.arguments(training_of(config, learned)),
        previous=lineage.folder(previous) if previous else None,
        states=states_of(lineage, plan.methods, silent) if previous else {},
        learned=len(lineage.stages) if previous else 0,
        has_origin=lineage.origin is not None,
        callbacks=callbacks,
    )
