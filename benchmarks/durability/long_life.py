"""Gives one lineage a long life, and measures what grows with it.

    python benchmarks/durability/long_life.py [--stages N] [--seed S]

A small lineage learns N tasks with a method that rehearses. In between it lives as a user's does:
settings change, the newest stage is taken back and learned again, a process is killed at a random
file operation and its command repeated, weights are dropped by `compact`. At the end `verify` must
find nothing, every stage must have its scores, and three dropped stages that are learned again must
have their recorded hashes. The status is 1 if not.

The results are written to `benchmarks/results/long_life.json`: for the first and the last tenth of
the life, the median seconds of `learn` without those of training and scoring, of `log`, and of
opening the lineage; the bytes of the ledger a line; and the bytes of the folder before and after
the last `compact`.
"""

import argparse
import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any


os.environ["HF_HUB_OFFLINE"] = "1"

from operations import Operations, Stopped
from small_lineage import ANSWERS, settings, workplace

from perdure import api
from perdure.lineage.lineage import Lineage
from perdure.reporting.results import device, write


RESULTS = Path(__file__).parents[1] / "results" / "long_life.json"
TASKS = tuple(ANSWERS)
PARTS = ("prepare", "train", "score", "guard")  # of what the timings of a stage tell
EVENTS = ("set", "revert", "kill", "compact")  # in turn


class Life:
    """A lineage, and what was measured of it.

    Args:
        stages: how many stages it learns, without those that are taken back.
        seed: of the file operations before which the process stops.
        every: after how many stages an event follows.
    """

    def __init__(self, stages: int, seed: int, every: int = 2):
        self.stages, self.every = stages, every
        self.generator = random.Random(seed)
        self.operations = Operations("")
        self.rows: list[dict[str, float]] = []
        self.events = dict.fromkeys(EVENTS, 0)
        self.faults: list[str] = []

    def learn(self, task: str, rank: int) -> None:
        """Learn a task."""
        rows = {"train": f"{task}-train.jsonl", "test": f"{task}-few.jsonl"}
        api.learn("lineage", f"{task}-{rank}", **rows)

    def event(self, name: str, task: str, rank: int) -> None:
        """Let happen to the lineage what happens to one."""
        self.events[name] += 1
        if name == "set":
            ratio = round(self.generator.uniform(0.05, 0.2), 3)
            api.configure("lineage", **{"memory.ratio": ratio})
        elif name == "revert":
            api.revert("lineage")
            self.learn(task, rank)
        elif name == "compact":
            api.compact("lineage")
        elif name == "kill":
            api.revert("lineage")
            self.operations.begin(self.generator.randint(1, 60))
            with contextlib.suppress(Stopped):
                self.learn(task, rank)
            self.operations.stop()
            self.learn(task, rank)

    def live(self) -> None:
        """Learn all stages, with the events in between, and measure each."""
        for task in TASKS:  # with two test rows: each stage scores all tasks before it
            lines = Path(f"{task}-test.jsonl").read_text(encoding="utf-8").splitlines()[:2]
            Path(f"{task}-few.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.operations.folder = str(Path("lineage").absolute())
        api.init("lineage", config=settings())
        for rank in range(1, self.stages + 1):
            task = TASKS[rank % len(TASKS)]
            began = time.perf_counter()
            self.learn(task, rank)
            whole = time.perf_counter() - began
            lineage = Lineage("lineage")
            spent = lineage.timings()[str(lineage.head)]["seconds"]
            self.rows.append(
                {
                    "learn": whole,
                    "train": spent["train"],
                    "score": spent["score"],
                    "rest": whole - sum(spent[part] for part in PARTS),
                    "open": _seconds(lambda: Lineage("lineage")),
                    "log": _seconds(lambda: api.log("lineage")),
                }
            )
            if rank % self.every == 0:
                self.event(EVENTS[rank // self.every % len(EVENTS)], task, rank)

    def check(self) -> None:
        """Find what is wrong at the end of the life."""
        self.faults += api.verify("lineage")
        lineage = Lineage("lineage")
        if len(lineage.stages) != self.stages:
            self.faults.append(f"{len(lineage.stages)} active stages, not {self.stages}")
        rows = lineage.matrix().rows
        if any(score is None for score in rows[-1]):
            self.faults.append("the newest stage has no score of a task")
        gone = [entry for entry in lineage.stages if lineage.is_gone(entry)]
        for entry in self.generator.sample(gone, min(3, len(gone))):
            api.repair("lineage", entry["stage"])
            if Lineage("lineage").is_gone(entry):
                self.faults.append(f"stage {entry['stage']} was not learned again")


def _seconds(function: Any) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def size(folder: Path) -> int:
    """Return the bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def record(life: Life, seed: int, before: int, after: int) -> dict[str, Any]:
    """Return the record of the result file."""
    tenth = max(len(life.rows) // 10, 1)
    ends = {"first": life.rows[:tenth], "last": life.rows[-tenth:]}
    medians = {
        f"{key}_{end}": round(statistics.median(row[key] for row in rows), 4)
        for key in life.rows[0]
        for end, rows in ends.items()
    }
    lines = Path("lineage/ledger.jsonl").read_bytes().count(b"\n")
    return {
        "method": "long_life",
        "order": "",
        "seed": seed,
        "stages": life.stages,
        **life.events,
        "lines": lines,
        "bytes_a_line": round(Path("lineage/ledger.jsonl").stat().st_size / lines),
        "bytes_before_compact": before,
        "bytes_after_compact": after,
        **medians,
        "faults": len(life.faults),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stages", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    life = Life(arguments.stages, arguments.seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(workplace(Path(folder) / "w")):
        life.live()
        before = size(Path("lineage"))
        api.compact("lineage")
        after = size(Path("lineage"))
        life.check()
        result = record(life, arguments.seed, before, after)
    for fault in life.faults:
        print(f"FAULT {fault}")
    print("\n".join(f"{key:22} {value}" for key, value in result.items() if value != ""))
    if arguments.stages == parser.get_default("stages"):
        command = "python benchmarks/durability/long_life.py"
        write(RESULTS, "long_life", command, device(1), [result])
    sys.exit(bool(life.faults))


if __name__ == "__main__":
    main()
