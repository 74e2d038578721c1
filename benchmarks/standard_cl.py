"""Standard CL on all-MiniLM-L6-v2 with LoRA: does knowledge identification pay, and at what cost?

    python benchmarks/standard_cl.py --data FOLDER --jobs 2

Seven methods, three orders, two seeds; learning rates are chosen on rows held out of train. A cell
(method, order, seed) runs in its own process with one thread; finished cells are kept, so the same
command goes on where it was stopped. `--rows 40` is a rehearsal in a folder of its own.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from standard_cl_cell import METHODS, Cell, key, run_cell, setting
from standard_cl_table import markdown, summarize, table

from engram.reporting.results import write


HERE = Path(__file__).parent
RESULTS = HERE / "results" / "standard_cl.json"
COMMAND = "python benchmarks/standard_cl.py --data FOLDER --jobs 2"

LEARNING_RATES = (2e-3, 3e-3)  # the same trials for every method
TRIAL_ORDER, TRIAL_SEED = 1, 100
SEEDS, ORDER_NUMBERS = (0, 1), (1, 2, 3)
WIDTH = 170  # of the table; a narrower one breaks its cells


def finished(runs: Path, chosen: dict[str, Any]) -> dict[Cell, dict[str, Any]]:
    """The records of every finished cell of this setting."""
    done = {}
    for path in sorted(runs.glob("*/record.json")):
        cell, kept = Cell.named(path.parent.name), json.loads(path.read_text())
        if cell.method in METHODS and kept["key"] == key(cell, chosen):
            done[cell] = kept["record"]
    return done


def best_rates(done: dict[Cell, dict[str, Any]]) -> dict[str, float]:
    """For each method with all its trials: the rate of the best held-out OP, the lower if tied."""
    best = {}
    for method in METHODS:
        trials = [Cell(method, TRIAL_ORDER, TRIAL_SEED, rate, True) for rate in LEARNING_RATES]
        if all(trial in done for trial in trials):
            best[method] = max(trials, key=lambda trial: done[trial]["overall"]).learning_rate
    return best


def report(runs: Path, results: Path, chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """Writes the result file from what is finished; returns its summary."""
    done = finished(runs, chosen)
    best = best_rates(done)
    trials = [record for cell, record in done.items() if cell.trial]
    records = [r for c, r in done.items() if not c.trial and best.get(c.method) == c.learning_rate]
    records.sort(key=lambda r: (r["seed"], r["order"], list(METHODS).index(r["method"])))
    summary = summarize(records, list(METHODS), best)
    more = {"setting": {**chosen, "methods": METHODS, "learning_rates": LEARNING_RATES}}
    more |= {"trials": trials, "chosen": best, "summary": summary}
    write(results, "standard_cl", COMMAND, "cpu, 1 thread a process", records, **more)
    return summary


def run_cells(cells: list[Cell], args: argparse.Namespace, runs: Path, results: Path) -> None:
    """Every unfinished cell in a process of its own, `args.jobs` at a time, in this order."""
    chosen = setting(args.rows)
    done = finished(runs, chosen)
    queue = [cell for cell in cells if cell not in done]
    total, ended = len(queue), 0
    running: dict[Cell, tuple[subprocess.Popen, float]] = {}
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(chosen["threads"])}
    own = [sys.executable, __file__, "--data", args.data]
    own += ["--rows", str(args.rows)] if args.rows else []
    try:
        while queue or running:
            while queue and len(running) < args.jobs:
                cell = queue.pop(0)
                (runs / cell.name).mkdir(parents=True, exist_ok=True)
                with (runs / cell.name / "log.txt").open("w") as log:
                    process = subprocess.Popen(
                        [*own, "--cell", cell.name], env=env, stdout=log, stderr=log
                    )
                running[cell] = process, time.perf_counter()
            time.sleep(0.2)
            over = [cell for cell in running if running[cell][0].poll() is not None]
            for cell in over:
                process, begin = running.pop(cell)
                ended += 1
                told = f"[{ended}/{total}] {cell.name}: "
                if process.returncode:
                    print(told + f"FAILED, see {runs / cell.name / 'log.txt'}", flush=True)
                    continue
                report(runs, results, chosen)
                record = finished(runs, chosen)[cell]
                wall = time.perf_counter() - begin
                print(told + f"OP {record['overall']:.3f}, {wall:.0f} s", flush=True)
    finally:
        for process, _ in running.values():
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description="The Standard CL benchmark on all-MiniLM-L6-v2.")
    parser.add_argument("--data", default=os.environ.get("ENGRAM_DATA"), help="else ENGRAM_DATA")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--trials-only", action="store_true")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument(
        "--orders", nargs="+", type=int, choices=ORDER_NUMBERS, default=ORDER_NUMBERS
    )
    parser.add_argument("--rows", type=int, help="a rehearsal with so many training rows a task")
    parser.add_argument("--results", type=Path, help="where the result file goes")
    parser.add_argument("--table", action="store_true", help="only print the results as Markdown")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args()
    runs = HERE / "runs" / (f"standard_cl_{args.rows}" if args.rows else "standard_cl")
    results = args.results or (runs / "standard_cl.json" if args.rows else RESULTS)
    if args.table:
        return print(markdown(json.loads(results.read_text())["summary"]))
    if not args.data:
        parser.error("say where the rows lie with --data FOLDER or ENGRAM_DATA")
    chosen = setting(args.rows)
    if args.cell:
        return run_cell(Cell.named(args.cell), runs / args.cell, chosen, args.data)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the cells are stopped too
    print(json.dumps(chosen))
    trials = [Cell(m, TRIAL_ORDER, TRIAL_SEED, r, True) for m in args.only for r in LEARNING_RATES]
    run_cells(trials, args, runs, results)
    best = best_rates(finished(runs, chosen))
    if not args.trials_only:
        blocks = [(order, seed) for seed in args.seeds for order in args.orders]
        ready = [m for m in args.only if m in best]
        cells = [Cell(m, o, s, best[m]) for o, s in blocks for m in ready]
        run_cells(cells, args, runs, results)
    Console(width=WIDTH).print(table(report(runs, results, chosen)))


if __name__ == "__main__":
    main()
