"""What the micro-batches of a training hold."""

from pathlib import Path

import torch

from train.engine import engine, tiny_base


def rehearsed(method, work: Path, kind: str = "causal", **settings):
    """Of each micro-batch of a task the numbers of its new rows and of its remembered ones."""
    trainer = engine(tiny_base(kind), method, work, **settings)
    tasks = trainer.methods[0].context.memory.tasks.values()
    new = {id(row): i for i, row in enumerate(trainer.train_dataset)}  # type: ignore[arg-type]
    old = {id(row): i for i, row in enumerate(row for task in tasks for row in task)}
    collate, batches = trainer.rehearsal.collator, []

    def noted(features):
        places = [[known[id(row)] for row in features if id(row) in known] for known in (new, old)]
        assert sum(map(len, places)) == len(features)
        batches.append(tuple(places))
        return collate(features)

    trainer.rehearsal.collator = noted  # type: ignore[assignment]
    trainer.training_step = lambda *args, **kwargs: torch.tensor(
        0.0
    )  # the rows are all that counts
    trainer.learn()
    return batches
