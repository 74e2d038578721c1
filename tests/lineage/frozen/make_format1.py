"""Makes the frozen lineage of format 1, which every later version must read.

    python tests/lineage/frozen/make_format1.py NEW_FOLDER

`format1/` was made once, on the lowest versions that were supported then, and is not made again:
the test reads what an early version wrote. A new format gets a script and a folder of its own.

    base/  up-train.jsonl  up-test.jsonl  down-...  left-...  lineage/  expected.json
"""

import contextlib
import json
import platform
import shutil
import sys
from pathlib import Path


sys.path.append(str(Path(__file__).parents[2]))

from perdure import RefusedError, api
from tiny import WORDS, save_tiny


ANSWERS = {"up": ("red", "green", "blue"), "down": ("cat", "dog"), "left": ("one", "two")}
LOGGED = ("stage", "parent", "verb", "active", "task", "scores", "reasons", "dropped", "date")
SHOWN = ("stage", "verb", "method", "scores", "remembered_rows", "weights_kept", "line_of")


def rows(task: str, count: int) -> list[dict[str, str]]:
    """Rows whose answer is a function of the first word (the task) and the third."""
    answers = ANSWERS[task]
    return [
        {
            "prompt": f"{task} the {WORDS[number % 4]} = answer : ",
            "completion": answers[number % 4 % len(answers)],
        }
        for number in range(count)
    ]


def learn(task: str) -> None:
    files = {split: f"{task}-{split}.jsonl" for split in ("train", "test")}
    api.learn("lineage", task, **files)


def make() -> None:
    """Make the lineage: two methods, a refused stage, a revert, an adopted and a dropped stage."""
    save_tiny("causal", Path("base"))
    for task in ANSWERS:
        for split, count in (("train", 24), ("test", 4)):
            lines = [json.dumps(row) + "\n" for row in rows(task, count)]
            Path(f"{task}-{split}.jsonl").write_text("".join(lines))
    api.init(
        "lineage",
        base="base",
        method="replay",
        adapter={"r": 4, "target_modules": "all-linear"},
        memory={"ratio": 0.3},
        training={
            "learning_rate": 4e-3,
            "num_train_epochs": 25,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
        },
        guard={"limit": 4, "max_new_tokens": 4},
        max_length=32,
        max_completion_length=2,
        threads=1,
    )
    learn("up")
    api.configure("lineage", method=["replay", "ewc"])
    learn("down")
    api.configure("lineage", method="sequential", **{"gate.forgetting": 0.0})
    refused = False
    try:
        learn("left")
    except RefusedError:
        refused = True
    assert refused
    api.configure("lineage", method=["replay", "ewc"], **{"gate.forgetting": None})
    learn("left")
    shutil.copytree("lineage/stages/0003-left", "trained")
    api.revert("lineage")
    api.adopt("lineage", "trained", "left", train="left-train.jsonl", test="left-test.jsonl")
    api.compact("lineage", [3])
    shutil.rmtree("trained")
    Path("lineage/lock").unlink(missing_ok=True)


def expected() -> dict:
    """What every later version must say of the lineage."""
    shown = [api.show("lineage", stage) for stage in (1, 2, 3, 4)]
    prompts = [row["prompt"] for task in ANSWERS for row in rows(task, 4)]
    learned = {1: prompts[:4], 2: prompts[:8], 4: prompts}
    return {
        "log": [{key: line[key] for key in LOGGED} for line in api.log("lineage")],
        "show": [{key: stage[key] for key in SHOWN} for stage in shown],
        "answers": [
            {"stage": stage, "prompts": asked, "answers": api.answer("lineage", asked, stage=stage)}
            for stage, asked in learned.items()
        ],
    }


if __name__ == "__main__":
    platform.node = lambda: "example"  # the times of a stage name the machine
    folder = Path(sys.argv[1])
    folder.mkdir()
    with contextlib.chdir(folder):
        make()
        text = json.dumps(expected(), indent=1, sort_keys=True)
        Path("expected.json").write_text(text + "\n")
