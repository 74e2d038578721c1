"""Lets the disk fail at every file operation of a verb, and prints what the verb said and left.

    python benchmarks/durability/disk.py [--verb NAME] [--operations N]

From one of its file operations on, a verb can no longer write: the disk is full (ENOSPC), its quota
is used up (EDQUOT), it is read-only (EROFS) or forbidden (EACCES). Then files may not exceed some
sizes (EFBIG), which also holds for what PyTorch and safetensors write themselves. The verb must end
with status 2 and one line that names a file and the reason, and leave nothing unfinished. The same
command must then work, and end in the bytes of a run without a fault. If only the newline of the
ledger's last line was missing, the verb has done its work and ends with status 0. The status of
this command is 1 if one did not.
"""

import argparse
import contextlib
import errno
import io
import os
import random
import resource
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"

import yaml
from operations import Operations
from small_lineage import TASKS, make_lineage, settings, workplace

from perdure.cli import main as perdure
from perdure.lineage.files import hash_folder
from perdure.models.layout import METHOD_STATE
from perdure.writing import REASONS


ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
REMOVING = ("os.remove", "os.rmdir")  # still work on a full disk
SIZES = (0, 200, 1000, 5000, 20000)  # bytes, the largest that a file may be
FREE = ("timings.json", "lock", "newest.json")  # what may differ between equal runs
VERBS = {
    "run": ("run", "run.yaml"),
    "init": ("init", "new", "--base", "base"),
    "set": ("set", "lineage", "memory.ratio=0.2"),
    "revert": ("revert", "lineage", "--to", "0"),
    "export": ("export", "lineage", "out"),
    "evaluate": ("evaluate", "lineage", "--predictions", "answers.jsonl"),
    "report": ("report", "lineage", "--out", "report.html"),
}


class Failing(Operations):
    """Operations that fail from number `last` on, with an error of the system."""

    def __init__(self, folder: str):
        super().__init__(folder)
        self.error = errno.ENOSPC

    def _next(self, name: str) -> None:
        if name.startswith(REMOVING) and self.error in (errno.ENOSPC, errno.EDQUOT):
            return
        self.count += 1
        self.names.append(name)
        if self.last and self.count >= self.last:
            path = name.partition(" ")[2] or None
            raise OSError(self.error, os.strerror(self.error), path)


@dataclass
class Outcome:
    """What a verb did when it could not write."""

    fault: str
    status: int
    lines: list[str]
    problems: list[str]


def original(folder: Path) -> Path:
    """Make the workplace of which every run gets a copy."""
    workplace(folder)
    with contextlib.chdir(folder):
        make_lineage("lineage", TASKS[:1])
        tasks = [
            {"name": task, "train": f"{task}-train.jsonl", "test": f"{task}-test.jsonl"}
            for task in TASKS[:2]
        ]
        run = {**settings(), "tasks": tasks, "lineage": "made"}
        Path("run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    return folder


@contextlib.contextmanager
def copy_of(folder: Path, to: Path) -> Iterator[None]:
    """Stand in a new copy of the workplace, which is deleted afterwards."""
    shutil.copytree(folder, to)
    with contextlib.chdir(to):
        yield
    shutil.rmtree(to)


def command(*arguments: str) -> tuple[int, list[str]]:
    """Run `perdure ARGUMENTS`; return the status and the lines that begin with `perdure:`.

    A traceback is a line of its own.
    """
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            perdure(arguments)
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException as error:
            return 1, [f"Traceback: {type(error).__name__}: {error}"]
    return status, [line for line in errors.getvalue().splitlines() if line.startswith("perdure:")]


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file, but for those that may differ between equal runs."""
    return {name: sha for name, sha in hash_folder(folder).items() if Path(name).name not in FREE}


def unfinished(folder: Path) -> list[str]:
    """Return the files and folders that are no whole result."""
    found = [p for p in folder.rglob(".*") if p.name.endswith(".new") or p.name.startswith(".tmp")]
    found += folder.glob("**/.work/*/stage")
    checkpoints = folder.glob("**/.work/*/checkpoint-*")
    found += [p for p in checkpoints if p.is_dir() and not (p / METHOD_STATE).exists()]
    return sorted(str(p.relative_to(folder)) for p in found)


def problems_of(status: int, lines: list[str], number: int, verb: str) -> list[str]:
    """Return what is wrong with the end of a verb that could not write."""
    problems = []
    if status != 2 or len(lines) != 1 or not lines[0].startswith("perdure: error: "):
        problems.append(f"status {status}, {lines}")
    elif REASONS[number] not in lines[0] and "may not be written" not in lines[0]:
        problems.append(f"no reason: {lines[0]}")
    elif lines[0].startswith("perdure: error: the output"):
        problems.append(f"no file: {lines[0]}")
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        problems += [f"left {path}" for path in unfinished(Path())]
        if verb == "init" and Path("new").exists():
            problems.append(f"left new: {[str(p) for p in Path('new').rglob('*')]}")
    return problems


def completed(verb: str, expected: dict[str, str]) -> list[str]:
    """Return what is wrong with the end of a verb that lacked only the newline of its last line."""
    folder = {"init": "new", "run": "made"}.get(verb, "lineage")
    status, lines = command("repair", folder)
    if status:
        return [f"cannot be completed: {lines}"]
    return [] if contents(Path()) == expected else ["ended with status 0, but in other bytes"]


def again(verb: str, expected: dict[str, str]) -> list[str]:
    """Run the verb once more, without a fault; return what is wrong."""
    status, lines = command(*VERBS[verb])
    if status:
        return [f"does not work afterwards: {lines}"]
    return [] if contents(Path()) == expected else ["ends in other bytes"]


def at_operation(
    place: Path, verb: str, operations: Failing, last: int, number: int, expected: dict[str, str]
) -> Outcome | None:
    """Let a verb's operations fail from number `last` on; the working directory is `place`.

    None if the verb had fewer operations than in its first run, in which it tried the base.
    """
    operations.folder, operations.error = str(place), number
    operations.begin(last)
    status, lines = command(*VERBS[verb])
    operations.stop()
    if operations.count < last:
        return None
    fault = f"{verb}, {errno.errorcode[number]} from operation {last} ({operations.names[-1]})"
    if status == 0 and verb in ("init", "run", "set", "revert"):
        return Outcome(fault, status, lines, completed(verb, expected))
    problems = problems_of(status, lines, number, verb) + again(verb, expected)
    return Outcome(fault, status, lines, problems)


def at_size(place: Path, verb: str, size: int, expected: dict[str, str]) -> Outcome | None:
    """Let files not exceed a size; None if the verb writes none that is larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        status, lines = command(*VERBS[verb])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if status == 0:
        return None
    problems = problems_of(status, lines, errno.EFBIG, verb) + again(verb, expected)
    return Outcome(f"{verb}, files of at most {size} bytes", status, lines, problems)


def outcomes(
    folder: Path, verb: str, operations: Failing, most: int | None, generator: random.Random
) -> Iterator[Outcome]:
    """Yield what a verb did at each of its operations, or at `most` of them, and at each size."""
    place = folder.parent / "place"
    operations.folder = str(place)
    with copy_of(folder, place):
        operations.begin()
        status, lines = command(*VERBS[verb])
        operations.stop()
        assert status == 0, lines
        expected, count = contents(Path()), operations.count
    points = list(range(1, count + 1))
    if most is not None:
        points = sorted(generator.sample(points, min(most, count)))
    for i, last in enumerate(points):
        with copy_of(folder, place):
            number = ERRORS[i % len(ERRORS)]
            outcome = at_operation(place, verb, operations, last, number, expected)
        if outcome:
            yield outcome
    for size in SIZES if most is None else generator.sample(SIZES, min(most, len(SIZES))):
        with copy_of(folder, place):
            outcome = at_size(place, verb, size, expected)
        if outcome:
            yield outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--verb", choices=VERBS, action="append", help="all by default")
    parser.add_argument("--operations", type=int, help="at how many of a verb's; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of operations")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    generator, counts = random.Random(arguments.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        place = original(Path(folder) / "original")
        operations = Failing(folder)
        for verb in arguments.verb or VERBS:
            for outcome in outcomes(place, verb, operations, arguments.operations, generator):
                counts[verb] += 1
                counts["wrong"] += bool(outcome.problems)
                for problem in outcome.problems:
                    print(f"FAULT {outcome.fault}: {problem}", flush=True)
            print(f"{verb}: {counts[verb]} faults", flush=True)
    wrong = counts.pop("wrong")
    print(f"{counts.total()} faults; {wrong} did not end in one line and then in the same bytes")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
