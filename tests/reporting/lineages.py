"""Lineages written by hand: the files of runs that nobody has to train."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from perdure.config import load_config
from perdure.data.generated import TASKS as GENERATED
from perdure.data.task import Split
from perdure.lineage.lineage import Lineage
from perdure.lineage.sources import describe_split
from perdure.measure.predictions import Predictions, write_predictions
from perdure.measure.statistics import sign_test
from perdure.seeds import digest


Cell = float | None
HOSTILE = "<script>alert(1)</script>\"'&"
FORMULA = "=HYPERLINK(1)|x"
VERSIONS = {"perdure": "0.1.0", "torch": "2.13.0"}


def lineage(
    path: Path,
    rows: Sequence[Sequence[Cell]],
    tasks: Sequence[str] = ("red", "blue", "green"),
    mode: str = "generate",
    state: dict[str, np.ndarray] | None = None,
    verdicts: Sequence[dict[str, Any]] = (),
    answers: Sequence[dict[str, Predictions]] = (),
    test: Split | None = None,
    dev: dict[str, Any] | None = None,
    **settings: Any,
) -> Lineage:
    """A lineage with this score matrix, whose stage i learned task i.

    `verdicts` and `answers` are those of the stages; `test` are the test rows of every task, and
    `dev` is what each stage measured on dev rows.
    """
    config = load_config({"tasks": "generated", **settings})
    writer = Lineage.create(path, config, {"name": "a base", "revision": None, "files": {}})
    for number, task in enumerate(tasks[: len(rows) - 1], 1):
        after = {
            t: cell(s, mode) for t, s in zip(tasks, rows[number], strict=True) if s is not None
        }
        j = number - 1
        scores = {
            "after": after,
            "before": {task: cell(rows[number - 1][j], mode)},
            "base": {task: cell(rows[0][j], mode)},
            **({"dev": dev} if dev else {}),
        }
        built = path / ".work" / "stage"
        built.mkdir(parents=True)
        (built / "scores.json").write_text(json.dumps(scores))
        (built / "memory.jsonl").write_text("{}\n" * (number + 1))
        if state and number > 1:
            save_file(state, built / "method.safetensors")
        if verdicts:
            (built / "verdict.json").write_text(json.dumps(verdicts[number - 1]))
        if answers:
            stored = {"before": {}, "after": answers[number - 1]}
            write_predictions(built / "predictions.json.gz", stored)
        line = entry(config, writer.head, number, task)
        if test is not None:
            line["task"]["test"] = describe_split(writer, test)
        writer.commit(built, line, timing(number))
    return Lineage(path)


def cell(score: Cell, mode: str) -> dict[str, Any]:
    details = {"metric": "exact_match", "mode": mode, "rows": 10, "truncated": 0}
    return {"score": score} if score is None else {"score": score, **details}


def entry(config: Any, head: int, number: int, task: str) -> dict[str, Any]:
    source = {"stream": "generated", "task": task, "split": "train", "limit": 40, "seed": 0}
    source = source if task in GENERATED else None
    split = {"rows": 40, "sha256": f"{number:064x}", "source": source}
    test = {**split, "sha256": digest("test rows", task), "source": None}
    described = {"id": task, "name": task, "metric": "exact_match", "options": None}
    return {
        "stage": number,
        "verb": "learn",
        "parent": head,
        "kind": "adapter",
        "folder": f"stages/{number:04d}-task",
        "mode": config.mode,
        "method": config.method,
        "task": {**described, "train": split, "test": test},
        "versions": VERSIONS,
    }


def timing(number: int) -> dict[str, Any]:
    seconds = {"prepare": 0.5, "train": 10.0 * number, "score": 2.0, "loss": 0.1}
    return {
        "date": f"2026-01-{number:02d}T10:00:00+00:00",
        "host": "a-private-host",
        "peak_memory_kib": 2048 * number,
        "seconds": seconds,
        "steps": 5,
        "rows": {"forward": 100 * number, "backward": 40 * number},
    }


ROWS = (
    (0.1, 0.2, 0.0),
    (0.9, 0.3, None),
    (0.5, 0.8, 0.1),
    (0.4, 0.6, 0.95),
)
BETTER = (
    (0.1, 0.2, 0.0),
    (0.9, 0.3, None),
    (0.8, 0.7, 0.2),
    (0.7, 0.65, 0.9),
)
UNKNOWN = (
    (0.1, 0.2, 0.0),
    (0.9, 0.3, None),
    (None, 0.8, 0.1),
    (None, 0.6, 0.95),
)


def kif_state(
    layers: int = 2, modules: tuple[str, ...] = ("q_proj", "v_proj")
) -> dict[str, np.ndarray]:
    """Two rounds; `layers` of two modules, each of 10 weights in a matrix A and 30 in a B."""
    state = {"recurrent_kif.shares": np.array([[0.1, 0.2, 0.3, 0.4], [0.3, 0.0, 0.1, 0.6]], "f4")}
    for layer in range(layers):
        for k, module in enumerate(modules):
            for part, n in (("A", 10), ("B", 30)):
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{part}"
                counts = [8 * n, 2 * n * (layer + 1), 4 * n * k]
                state[f"recurrent_kif.important.{name}.default.weight"] = np.array(counts)
    return state


def change(before: Cell, after: float, fell: int = 0, rose: int = 0, **more: Any) -> dict[str, Any]:
    """What a stage did to the ten answers to a task, as a verdict stores it."""
    p = {"p": sign_test(fell, rose), "collapse": None}
    return {"before": before, "after": after, "rows": 10, "fell": fell, "rose": rose, **p, **more}


def judged(task: str, learned: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """A stored verdict."""
    empty = {"old": {}, "lost": [], "lost_before": [], "unmeasured": [], "suggestion": None}
    return {"task": task, "learned": learned, **empty, **more}


# The verdicts on the stages of ROWS: red fell twice, the first time within noise.
VERDICTS = (
    judged("red", change(0.1, 0.9, rose=8)),
    judged("blue", change(0.3, 0.8, rose=5), old={"red": change(0.9, 0.5, fell=4)}),
    judged(
        "green",
        change(0.1, 0.95, rose=8),
        old={"red": change(0.5, 0.4, fell=1), "blue": change(0.8, 0.6, fell=7, rose=0)},
        lost=["blue"],
        lost_before=["red"],
        suggestion="`perdure revert FOLDER --to 2` undoes the stage; <b>try</b> replay",
    ),
)
