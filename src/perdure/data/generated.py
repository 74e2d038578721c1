"""The small generated stream of the quickstart: four tasks about the same kind of sentence.

    read : anna gladly sold seven small red drums in the kitchen . question : QUESTION answer :

For this sentence the questions and their answers are

    which topic of thing ?      music    (of instruments, foods, plants, animals, tools, clothes)
    which mood of manner ?      joy      (of smiling, crying, shouting, resting)
    which amount of number ?    some     (of four ranges)
    which scene of place ?      home     (of rooms, streets, lands, shores)

The sentences are alike and only the question tells the tasks apart, so a model that is fine-tuned
on one task after another soon loses the earlier ones, and forgetting shows within a minute. A
completion begins with a space, because prompt and completion are joined without one. This module
does not import torch, and a row depends only on its task, split and seed.
"""

import random

from perdure.data.rows import Row
from perdure.data.task import Split, Task
from perdure.data.words import (
    AMOUNTS,
    MANNERS,
    MOODS,
    NUMBERS,
    PLACES,
    SCENES,
    THINGS,
    TOPICS,
    Slots,
    class_of,
    draw_slots,
    sentence,
)
from perdure.errors import PerdureError, nearest


MOST_ROWS = 100_000  # of a split
TASKS = ("topic", "mood", "amount", "scene")
SLOT = {"topic": "thing", "mood": "manner", "amount": "number", "scene": "place"}
SPLITS = ("train", "test")


def question(task: str) -> str:
    """Return the question that every prompt of a task asks."""
    return f"which {task} of {SLOT[task]} ?"


def answer(task: str, slots: Slots) -> str:
    """Return the correct answer of `task` for a sentence with these slots."""
    if task == "topic":
        return TOPICS[class_of(THINGS, slots["thing"])]
    if task == "mood":
        return MOODS[class_of(MANNERS, slots["manner"])]
    if task == "scene":
        return SCENES[class_of(PLACES, slots["place"])]
    return AMOUNTS[NUMBERS.index(slots["number"]) * len(AMOUNTS) // len(NUMBERS)]


def generated_rows(task: str, split: str, limit: int, seed: int = 0) -> list[Row]:
    """Return the first `limit` rows of a split, without duplicates.

    A hash of the prompt's text decides its split (one prompt in five is a test prompt), so the
    splits are disjoint for any size and seed.

    Raises:
        PerdureError: the task or the split is unknown, or the limit is above `MOST_ROWS`.
    """
    if limit > MOST_ROWS:
        raise PerdureError(
            f"a generated split has at most {MOST_ROWS} rows, got a limit of {limit}"
        )
    if task not in TASKS:
        raise PerdureError(f"no generated task {task!r}: {nearest(task, TASKS)}")
    if split not in SPLITS:
        raise PerdureError(f"no generated split {split!r}: {nearest(split, SPLITS)}")
    generator = random.Random(f"perdure {task} {split} {seed}")  # a string seeds by its SHA-512
    rows: dict[str, Row] = {}
    while len(rows) < limit:
        slots = draw_slots(generator)
        prompt = f"read : {sentence(slots)} . question : {question(task)} answer :"
        held_out = random.Random(prompt).random() < 0.2
        if held_out == (split == "test"):
            rows.setdefault(prompt, {"prompt": prompt, "completion": f" {answer(task, slots)}"})
    return list(rows.values())


def generated_split(task: str, split: str, limit: int, seed: int = 0) -> Split:
    """Return the rows of `generated_rows` with the source from which they can be made again."""
    source = {"stream": "generated", "task": task, "split": split, "limit": limit, "seed": seed}
    return Split(rows=tuple(generated_rows(task, split, limit, seed)), source=source)


def generated_tasks(train: int = 500, test: int = 100, seed: int = 0) -> list[Task]:
    """Return the four tasks in order, each with `train` and `test` rows."""
    return [
        Task(
            name=name,
            train=generated_split(name, "train", train, seed),
            test=generated_split(name, "test", test, seed),
        )
        for name in TASKS
    ]
