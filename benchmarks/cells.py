"""What `methods.py` and `long_sequence.py` share: trials, then tests, each in a process of its own.

Every method has the same number of trials on rows held out of train, and the one with the best OP
is taken; test rows are read only after that. Finished cells are kept, also by the result file.
"""

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standard_cl_cell import METHODS, SETTING, Cell, key, run_cell

from engram.methods import make
from engram.models.layout import MEMORY
from engram.reporting.results import write
from engram.train.trainer import STATE


HERE = Path(__file__).parent
# Else glibc gives the memory of a step back and takes it again in the next, which costs time.
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000"}
TRIAL_ORDER, TRIAL_SEED = 1, 100


@dataclass(frozen=True)
class Trial:
    """A method as it stands under `method:`, its learning rate, and what else is set."""

    method: Any
    rate: float
    changed: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """Methods with their trials on a stream; `smaller` is laid over SETTING.

    `follows` are methods without trials of their own: each takes the number of the trial that
    another chose, and runs on the first order alone, with `follow_seeds`.
    """

    name: str
    trials: dict[str, list[Trial]]
    smaller: dict[str, Any]
    batch: int
    orders: tuple[int, ...]
    seeds: tuple[int, ...]
    follows: dict[str, str] = field(default_factory=dict)
    follow_seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for method, trials in self.trials.items():
            METHODS.update({f"{method}.{i}": trial.method for i, trial in enumerate(trials)})

    @property
    def results(self) -> Path:
        return HERE / "results" / f"{self.name}.json"

    @property
    def runs(self) -> Path:
        return HERE / "runs" / self.name

    @property
    def command(self) -> str:
        return f"python benchmarks/{self.name}.py --data FOLDER --jobs 2"

    def setting(self, cell: Cell) -> dict[str, Any]:
        """What the cell runs under: the smaller setting, and what its trial changes of it."""
        training = {**SETTING["training"], "per_device_train_batch_size": self.batch}
        return {**SETTING, **self.smaller, "training": training, **self._trial(cell).changed}

    def _trial(self, cell: Cell) -> Trial:
        method, _, number = cell.method.partition(".")
        return self.trials[method][int(number)]

    def cell(self, method: str, i: int, order: int, seed: int, trial: bool = False) -> Cell:
        """The cell of a method with the keywords of its trial number `i`."""
        return Cell(f"{method}.{i}", order, seed, self.trials[method][i].rate, trial)

    def trials_of(self, method: str) -> list[Cell]:
        if method in self.follows:
            return []
        count = range(len(self.trials[method]))
        return [self.cell(method, i, TRIAL_ORDER, TRIAL_SEED, True) for i in count]

    def best(self, method: str) -> int | None:
        """The number of the trial with the best OP, the first if tied; None if one is not done."""
        done = [self.record(cell) for cell in self.trials_of(self.follows.get(method, method))]
        if not all(done):
            return None
        return max(range(len(done)), key=lambda i: done[i]["overall"])  # type: ignore[index]

    def tests(self, method: str) -> list[Cell]:
        """The cells that are scored on test rows, once the trials are known."""
        chosen = self.best(method)
        orders, seeds = self.orders, self.seeds
        if method in self.follows:
            orders, seeds = self.orders[:1], self.follow_seeds
        pairs = [(order, seed) for seed in seeds for order in orders]
        return [] if chosen is None else [self.cell(method, chosen, *pair) for pair in pairs]

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """The record of a finished cell of this setting, from its folder or the result file."""
        path, wanted = self.runs / cell.name / "record.json", key(cell, self.setting(cell))
        if not path.exists():
            return published(self.results).get((cell.name, wanted))
        kept = json.loads(path.read_text())
        told = {"cell": cell.name, "key": wanted, "changed": self._trial(cell).changed}
        return kept["record"] | told if kept["key"] == wanted else None

    def run(self, cell: Cell, data: str) -> None:
        """Runs a cell, and adds to its record what it needs besides time."""
        folder = self.runs / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        run_cell(cell, folder, self.setting(cell), data)
        path = folder / "record.json"
        kept = json.loads(path.read_text())
        stages = sorted((folder / "lineage" / "stages").glob("*"))
        kept["record"] |= {
            "method": cell.method.partition(".")[0],
            "keywords": METHODS[cell.method],
            "whole": self.setting(cell)["adapter"] is None,
            "rehearses": any(method.rehearses for method in make(METHODS[cell.method])),
            "peak_memory_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "state_bytes": (stages[-1] / STATE).stat().st_size if stages else 0,
            "remembered_rows": sum(len((s / MEMORY).read_text().splitlines()) for s in stages),
        }
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    def report(self, summarize: Callable[..., list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Writes the result file from what is finished; returns its summary."""
        trials = [self.record(cell) for m in self.trials for cell in self.trials_of(m)]
        records = [found for m in self.trials for c in self.tests(m) if (found := self.record(c))]
        summary = summarize(records, list(self.trials))
        more = {"setting": {**SETTING, **self.smaller, "batch": self.batch}, "summary": summary}
        more["trials"] = [trial for trial in trials if trial]
        write(self.results, self.name, self.command, "cpu, 1 thread a process", records, **more)
        return summary


@functools.cache
def published(results: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The records that a result file had when this began, by cell and key."""
    if not results.exists():
        return {}
    found = json.loads(results.read_text())
    return {(r["cell"], r["key"]): r for r in [*found["trials"], *found["records"]]}


def main(
    bench: Benchmark,
    summarize: Callable[..., list[dict[str, Any]]],
    markdown: Callable[[list[dict[str, Any]]], str],
) -> None:
    """The command line of a benchmark."""
    parser = argparse.ArgumentParser(description=f"The benchmark {bench.name}.")
    parser.add_argument("--data", default=os.environ.get("ENGRAM_DATA"), help="else ENGRAM_DATA")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=[*bench.trials], default=[*bench.trials])
    parser.add_argument("--trials-only", action="store_true", help="read no test rows yet")
    parser.add_argument("--table", action="store_true", help="only print the results as Markdown")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.table and not args.data:
        parser.error("say where the rows lie with --data FOLDER or ENGRAM_DATA")
    if args.cell:
        return bench.run(Cell.named(args.cell), args.data)
    if not args.table:
        _run_all(bench, args.only, args.data, args.jobs, args.trials_only)
    print(markdown(bench.report(summarize)))


def _run_all(bench: Benchmark, only: list[str], data: str, jobs: int, trials_only: bool) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **KEEP}
    script = str(HERE / f"{bench.name}.py")

    def start(cell: Cell) -> None:
        if bench.record(cell):
            return
        command = [sys.executable, script, "--data", data, "--cell", cell.name]
        ended = subprocess.run(command, env=env, capture_output=True, text=True)
        found = bench.record(cell)
        said = f"OP {found['overall']:.3f}" if found else "FAILED: " + ended.stderr[-2000:]
        print(f"{cell.name}: {said}", flush=True)

    for cells in (bench.trials_of, *(() if trials_only else (bench.tests,))):
        # pair by pair, so that what is finished can be compared at any time
        found = [cell for method in only for cell in cells(method)]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(start, sorted(found, key=lambda cell: (cell.seed, cell.order))))
