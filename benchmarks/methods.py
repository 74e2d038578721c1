"""Every method of the field on one stream: what it keeps, what it costs.

    python benchmarks/methods.py --data FOLDER --jobs 2

Standard CL on all-MiniLM-L6-v2 with LoRA, smaller than in `standard_cl.py`: two orders, two seeds,
400 rows a task. Each method has two trials (`methods_list.py`) on rows held out of train, and the
best is taken; test rows are read only after that. Finished cells are kept, also by the result file.
"""

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from methods_list import TRIALS
from methods_table import markdown, summarize
from standard_cl_cell import METHODS, SETTING, Cell, key, run_cell

from engram.layout import MEMORY
from engram.learn.methods import make
from engram.learn.trainer import STATE
from engram.report.results import write


HERE = Path(__file__).parent
RUNS, RESULTS = HERE / "runs" / "methods", HERE / "results" / "methods.json"
COMMAND = "python benchmarks/methods.py --data FOLDER --jobs 2"
SMALLER = {"train_rows": 400, "held_out_rows": 100, "test_rows": 200, "memory_rows": 10}
BATCH = 4  # so that 400 rows are 100 steps
TRIAL_ORDER, TRIAL_SEED = 1, 100
ORDERS, SEEDS = (1, 2), (0, 1)

METHODS.update({f"{m}.{i}": t.method for m, trials in TRIALS.items() for i, t in enumerate(trials)})


def cell_of(method: str, i: int, order: int, seed: int, trial: bool = False) -> Cell:
    """The cell of a method with the keywords of its trial number `i`."""
    return Cell(f"{method}.{i}", order, seed, TRIALS[method][i].rate, trial)


def setting(cell: Cell) -> dict[str, Any]:
    """What the cell runs under: the smaller setting, and what its trial changes of it."""
    method, _, i = cell.method.partition(".")
    training = {**SETTING["training"], "per_device_train_batch_size": BATCH}
    return {**SETTING, **SMALLER, "training": training, **TRIALS[method][int(i)].changed}


def record_of(cell: Cell) -> dict[str, Any] | None:
    """The record of a finished cell of this setting, from its folder or from the result file."""
    path, wanted = RUNS / cell.name / "record.json", key(cell, setting(cell))
    if not path.exists():
        return published().get((cell.name, wanted))
    kept = json.loads(path.read_text())
    method, _, i = cell.method.partition(".")
    told = {"cell": cell.name, "key": wanted, "changed": TRIALS[method][int(i)].changed}
    return kept["record"] | told if kept["key"] == wanted else None


@functools.cache
def published() -> dict[tuple[str, str], dict[str, Any]]:
    """The records that the result file had when this began, by cell and key."""
    if not RESULTS.exists():
        return {}
    found = json.loads(RESULTS.read_text())
    return {(r["cell"], r["key"]): r for r in [*found["trials"], *found["records"]]}


def run_one(cell: Cell, data: str) -> None:
    """Runs a cell, and adds to its record what it needs besides time."""
    folder = RUNS / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    run_cell(cell, folder, setting(cell), data)
    path = folder / "record.json"
    kept = json.loads(path.read_text())
    stages = sorted((folder / "lineage" / "stages").glob("*"))
    kept["record"] |= {
        "method": cell.method.partition(".")[0],
        "keywords": METHODS[cell.method],
        "whole": setting(cell)["adapter"] is None,
        "rehearses": any(method.rehearses for method in make(METHODS[cell.method])),
        "peak_memory_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "state_bytes": (stages[-1] / STATE).stat().st_size if stages else 0,
        "remembered_rows": sum(len((s / MEMORY).read_text().splitlines()) for s in stages),
    }
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def best(method: str) -> int | None:
    """The number of the trial with the best held-out OP, the first if tied; None if some lack."""
    count = range(len(TRIALS[method]))
    done = [record_of(cell_of(method, i, TRIAL_ORDER, TRIAL_SEED, True)) for i in count]
    if not all(done):
        return None
    return max(count, key=lambda i: done[i]["overall"])  # type: ignore[index]


def tests(method: str) -> list[Cell]:
    chosen = best(method)
    return [] if chosen is None else [cell_of(method, chosen, o, s) for s in SEEDS for o in ORDERS]


def report() -> list[dict[str, Any]]:
    """Writes the result file from what is finished; returns its summary."""
    trials = [
        record_of(cell_of(m, i, TRIAL_ORDER, TRIAL_SEED, True))
        for m, listed in TRIALS.items()
        for i in range(len(listed))
    ]
    records = [found for m in TRIALS for cell in tests(m) if (found := record_of(cell))]
    summary = summarize(records, list(TRIALS))
    more = {"setting": {**SETTING, **SMALLER, "batch": BATCH}, "summary": summary}
    more["trials"] = [trial for trial in trials if trial]
    write(RESULTS, "methods", COMMAND, "cpu, 1 thread a process", records, **more)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description="Every method on one stream.")
    parser.add_argument("--data", default=os.environ.get("ENGRAM_DATA"), help="else ENGRAM_DATA")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--table", action="store_true", help="only print the results as Markdown")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        return print(markdown(report()))
    if not args.data:
        parser.error("say where the rows lie with --data FOLDER or ENGRAM_DATA")
    if args.cell:
        return run_one(Cell.named(args.cell), args.data)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def start(cell: Cell) -> None:
        if record_of(cell):
            return
        command = [sys.executable, __file__, "--data", args.data, "--cell", cell.name]
        ended = subprocess.run(command, env=env, capture_output=True, text=True)
        found = record_of(cell)
        said = f"OP {found['overall']:.3f}" if found else "FAILED: " + ended.stderr[-2000:]
        print(f"{cell.name}: {said}", flush=True)

    for method in args.only:
        with ThreadPoolExecutor(args.jobs) as pool:
            count = range(len(TRIALS[method]))
            list(
                pool.map(start, [cell_of(method, i, TRIAL_ORDER, TRIAL_SEED, True) for i in count])
            )
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(start, tests(method)))
    print(markdown(report()))


if __name__ == "__main__":
    main()
