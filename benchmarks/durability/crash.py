"""Kills a run at every file operation, and at random moments, and runs it again.

    python benchmarks/durability/crash.py [--whole] [--operations N] [--random N]

A run of two tasks from nothing is ended by SIGKILL before each of its file operations in turn (or
at N of them), and then after random times. Each time the lineage must open, if it was made at all,
and the same run must end in the bytes of a run that was not killed. The status is 1 if one did not.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from operations import Operations, kill
from small_lineage import TASKS, settings, workplace

import perdure.verbs.run  # imported once, before the children are forked
import perdure.verbs.verify  # noqa: F401
from perdure import api
from perdure.lineage.files import hash_folder
from perdure.lineage.lineage import Lineage


FREE = ("timings.json", "lock")  # what may differ between equal runs


def run(whole: bool) -> None:
    """Run two tasks from nothing, or go on with the run."""
    tasks = [
        {"name": task, "train": f"{task}-train.jsonl", "test": f"{task}-test.jsonl"}
        for task in TASKS[:2]
    ]
    api.run({**settings(whole), "tasks": tasks, "lineage": "lineage"})


def contents(lineage: Path) -> dict[str, str]:
    """Return the hash of every file of a lineage, but for those that may differ."""
    return {name: sha for name, sha in hash_folder(lineage).items() if name not in FREE}


def in_child(task: Callable[[], object], after: float | None = None) -> tuple[int, str]:
    """Do a task in a child process, kill it `after` seconds, and return its status and its word.

    The child is a fork, because importing the libraries takes longer than the run. So this process
    must not have computed a gradient.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 1
        try:
            os.write(writer, str(task() or "").encode()[:60_000])
            status = 0
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode()[:60_000])
        finally:
            os._exit(status)
    os.close(writer)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    with open(reader, encoding="utf-8") as file:
        word = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, word


def counted(whole: bool, last: int) -> str:
    """Run and end before file operation `last` (0: never); return all operations, one a line."""
    operations = Operations("lineage")
    operations.begin(last, kill)
    run(whole)
    operations.stop()
    return "\n".join(operations.names)


def fault_after(whole: bool, expected: dict[str, str]) -> str | None:
    """Open the lineage that a kill left, run again, and return what is wrong, None if nothing."""
    lineage = Path("lineage")
    if (lineage / "lineage.yaml").exists():
        status, word = in_child(lambda: Lineage(lineage))
        if status:
            return f"does not open: {word}"
    status, word = in_child(lambda: run(whole))
    if status:
        return f"does not go on: {word}"
    status, word = in_child(lambda: "; ".join(api.verify(lineage)))
    if status or word:
        return f"does not verify: {word}"
    return None if contents(lineage) == expected else "ends in other bytes"


def killed(
    whole: bool, expected: dict[str, str], last: int = 0, after: float | None = None
) -> tuple[bool, str | None]:
    """Kill one run; return whether it was killed before its end, and what is wrong afterwards."""
    shutil.rmtree("lineage", ignore_errors=True)
    status, _ = in_child(lambda: counted(whole, last), after=after)
    return status != 0, fault_after(whole, expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--whole", action="store_true", help="a lineage of whole weights")
    parser.add_argument("--operations", type=int, help="at how many operations; all by default")
    parser.add_argument("--random", type=int, default=20, help="at how many random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    arguments = parser.parse_args()
    generator, wrong, ended = random.Random(arguments.seed), [], 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        workplace(Path())
        began = time.perf_counter()
        status, word = in_child(lambda: counted(arguments.whole, 0))
        seconds, names = time.perf_counter() - began, word.splitlines()
        if status:
            sys.exit(word)
        expected = contents(Path("lineage"))
        print(f"{len(names)} file operations in a run of {seconds:.1f} s")
        points = list(range(1, len(names) + 1))
        if arguments.operations:
            points = sorted(generator.sample(points, min(arguments.operations, len(points))))
        for point in points:
            was_killed, fault = killed(arguments.whole, expected, last=point)
            ended += was_killed
            if fault:
                wrong.append(f"before operation {point} ({names[point - 1]}): {fault}")
                print("FAULT", wrong[-1], flush=True)
        for _ in range(arguments.random):
            after = generator.uniform(0, seconds)
            was_killed, fault = killed(arguments.whole, expected, after=after)
            ended += was_killed
            if fault:
                wrong.append(f"after {after:.3f} s: {fault}")
                print("FAULT", wrong[-1], flush=True)
    print(
        f"killed {ended} runs, at {len(points)} file operations and {arguments.random} random "
        f"moments; {len(wrong)} did not end in the same bytes"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
