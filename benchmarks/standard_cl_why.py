"""Where Recurrent-KIF gains and loses on Standard CL: one keyword changed at a time.

    python benchmarks/standard_cl_why.py --data FOLDER --jobs 2

Every probe learns order 1 with seed 100 on 800 of each task's training rows and is scored on the
200 held out, as the learning-rate trials of `standard_cl.py`; test rows are never opened. A
difference of one run has a standard error of about 0.016 from the held-out rows alone: read for
size, not for rank. Finished probes are kept. The methods as they are stand beside them, from the
trials of `standard_cl.py`, so run that one first.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from standard_cl_cell import HALF, METHODS, SETTING, Cell, run_cell

from engram.reporting.results import write


HERE = Path(__file__).parent
RUNS = HERE / "runs" / "standard_cl_why"
COMMAND = "python benchmarks/standard_cl_why.py --data FOLDER --jobs 2"


def kif(preset: str, **keywords: Any) -> dict[str, Any]:
    return {"recurrent_kif": {"preset": preset, **keywords}}


REPLAY, TWICE, MORE = {"replay": {"ratio": 0.5}}, {"num_train_epochs": 2}, {"memory_rows": 60}
# name: (method, learning rate, what differs in the setting); the rates are the chosen ones
PROBES: dict[str, tuple[Any, float, dict[str, Any]]] = {
    "release_own_rate_tied": (
        kif("release", outer_learning_rate=3e-3, outer_schedule="inner"),
        3e-3,
        {},
    ),
    "paper_quantile_50": (kif("paper", quantile=0.5), 3e-3, {}),
    "paper_momentum_reset": (kif("paper", momentum="reset"), 3e-3, {}),
    "paper_momentum_scale": (kif("paper", momentum="scale"), 3e-3, {}),
    "paper_without_memory_steps": (kif("paper", outer_learning_rate=0.0), 3e-3, {}),
    "mask_free_faster": (kif("paper", fusion=HALF), 3e-3, {}),
    "keep_all_of_both": (
        kif("paper", fusion={case: [1, 1] for case in HALF}),
        2e-3,
        {},
    ),
    "replay_60_rows": (REPLAY, 2e-3, MORE),
    "release_60_rows": (kif("release"), 3e-3, MORE),
    "replay_2_epochs": (REPLAY, 2e-3, TWICE),
    "release_2_epochs": (kif("release"), 3e-3, TWICE),
    "paper_2_epochs": (kif("paper"), 3e-3, TWICE),
}


def setting(changed: dict[str, Any]) -> dict[str, Any]:
    training = {k: changed.get(k, v) for k, v in SETTING["training"].items()}
    top = {k: v for k, v in changed.items() if k not in training}
    return {**SETTING, **top, "training": training}


def run_probe(name: str, data: str) -> None:
    method, rate, changed = PROBES[name]
    METHODS[name] = method
    (RUNS / name).mkdir(parents=True, exist_ok=True)
    run_cell(Cell(name, 1, 100, rate, trial=True), RUNS / name, setting(changed), data)


def report() -> list[dict[str, Any]]:
    """Writes the result file: the methods at their chosen rates, then the finished probes."""
    measured = json.loads((HERE / "results" / "standard_cl.json").read_text())
    chosen = measured["chosen"]
    records = [t for t in measured["trials"] if chosen.get(t["method"]) == t["learning_rate"]]
    for name, (method, _, changed) in PROBES.items():
        path = RUNS / name / "record.json"
        if path.exists():
            record = json.loads(path.read_text())["record"]
            records.append({**record, "keywords": method, "changed": changed})
    write(
        HERE / "results" / "standard_cl_why.json",
        "standard_cl_why",
        COMMAND,
        "cpu, 1 thread a process",
        records,
        setting=SETTING,
    )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description="Where Recurrent-KIF gains and loses.")
    parser.add_argument("--data", default=os.environ.get("ENGRAM_DATA"), required=False)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(PROBES), default=list(PROBES))
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.data:
        parser.error("say where the rows lie with --data FOLDER or ENGRAM_DATA")
    if args.probe:
        return run_probe(args.probe, args.data)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def start(name: str) -> None:
        if not (RUNS / name / "record.json").exists():
            command = [sys.executable, __file__, "--data", args.data, "--probe", name]
            subprocess.run(command, env=env, check=True, capture_output=True)
            report()

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(start, args.only))
    table = Table("probe", "OP", "BWT", "learned", title="Standard CL, order 1, held-out rows")
    for record in report():
        numbers = (record.get(k) for k in ("overall", "backward_transfer", "learning_accuracy"))
        table.add_row(record["method"], *("-" if n is None else f"{n:.3f}" for n in numbers))
    Console().print(table)


if __name__ == "__main__":
    main()
