"""A small lineage to damage and to kill: a tiny base, three tasks, methods with state."""

import json
import sys
from pathlib import Path
from typing import Any

import torch


sys.path.append(str(Path(__file__).parents[1]))

from architectures import WORDS, make

from perdure import api


TASKS = ("colour", "animal", "count")
ANSWERS = {
    "colour": ("red", "green", "blue"),
    "animal": ("cat", "dog", "bird"),
    "count": ("one", "two"),
}


def write_rows(folder: Path) -> None:
    """Write train and test rows of each task: the answer is a function of the third word."""
    for task, answers in ANSWERS.items():
        for split, count, seed in (("train", 24, 0), ("test", 8, 1)):
            generator = torch.Generator().manual_seed(seed)
            lines = []
            for number in torch.randint(0, 4, (count,), generator=generator).tolist():
                row = {
                    "prompt": f"question the {WORDS[number]} = answer : ",
                    "completion": answers[number % len(answers)],
                }
                lines.append(json.dumps(row) + "\n")
            (folder / f"{task}-{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def workplace(folder: Path) -> Path:
    """Write a base and rows into a new folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    make("llama", folder / "base")
    write_rows(folder)
    return folder


def settings(whole: bool = False) -> dict[str, Any]:
    """Return the settings of a lineage beside `base`, with adapters or with whole weights."""
    return {
        "base": "base",
        "method": ["replay", {"recurrent_kif": {"inner_steps": 2}}],
        "memory": {"ratio": 0.1},
        "training": {"learning_rate": 1e-2, "num_train_epochs": 1},
        **({"adapter": None} if whole else {}),
        "max_length": 32,
        "max_completion_length": 4,
        "checkpoint_every": 1,
        "threads": 1,
    }


def learn(lineage: str, task: str) -> dict[str, Any]:
    """Learn one of the tasks; the working directory is that of `workplace`."""
    return api.learn(lineage, task, train=f"{task}-train.jsonl", test=f"{task}-test.jsonl")


def make_lineage(lineage: str, tasks: tuple[str, ...], whole: bool = False) -> None:
    """Make a lineage that has learned these tasks."""
    api.init(lineage, config=settings(whole))
    for task in tasks:
        learn(lineage, task)
