"""The verbs as Python calls, as short as on the command line, which calls them too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram.config import Config, load_config
from engram.data.rows import Row, as_row
from engram.data.stream import file_split
from engram.data.task import Split, Task
from engram.lineage.lineage import Lineage
from engram.report.results import method_name


if TYPE_CHECKING:
    from transformers import TrainerCallback

Rows = str | Path | Sequence[Row]
Say = Callable[[str], None]


def silent(line: str) -> None:
    """What the verbs do with their notes unless they are given something else."""


def init(
    folder: str | Path, base: str | None = None, config: str | Path | None = None, **settings: Any
) -> Lineage:
    """A new lineage on an untouched base.

        engram.init("my-model", base="Qwen/Qwen3-0.6B", method="replay")

    `config` is a YAML, `settings` are laid over it; a key with dots is written
    `**{"training.learning_rate": 1e-4}`.
    """
    from engram.lineage import verbs

    given = settings | ({"base": base} if base else {})
    return verbs.init(folder, load_config(config or {}, given))


def learn(
    folder: str | Path,
    name: str,
    train: Rows,
    test: Rows | None = None,
    dev: Rows | None = None,
    metric: str = "exact_match",
    options: Sequence[str] | None = None,
    data: str | Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    say: Say = silent,
) -> dict[str, Any]:
    """Learn one more task from a file of rows or from rows; returns the new stage's ledger line.

    engram.learn("my-model", "reviews", train="reviews.jsonl", test="reviews-test.jsonl")
    """
    seed = Lineage(folder).config.seed
    splits = {
        split: _split(rows, seed, f"{name} {split}")
        for split, rows in (("train", train), ("dev", dev), ("test", test))
        if rows is not None
    }
    task = Task(name, metric=metric, options=tuple(options) if options else None, **splits)

    from engram.lineage import verbs

    return verbs.learn(folder, task, data, callbacks, say)


def run(
    config: Config | str | Path,
    callbacks: Sequence[TrainerCallback] = (),
    say: Say = silent,
    **settings: Any,
) -> Lineage:
    """Learn a stream of tasks; the same call again goes on where it was stopped.

        engram.run("examples/quickstart.yaml", method="recurrent_kif").matrix()

    A YAML that names no lineage gets `<its name>/<the method's name>`.
    """
    if not isinstance(config, Config):
        config = run_config(config, settings)

    from engram.lineage import verbs

    return verbs.run(config, callbacks, say)


def run_config(path: str | Path, settings: list[str] | dict[str, Any] | None = None) -> Config:
    """The settings of a run with a place for its lineage."""
    config = load_config(path, settings)
    name = method_name(config.method, config.mode)
    config.lineage = config.lineage or str(Path(Path(path).stem) / name)
    return config


def evaluate(
    folder: str | Path,
    stage: int | None = None,
    tasks: Sequence[str] = (),
    mode: str | None = None,
    data: str | Path | None = None,
    say: Say = silent,
) -> dict[str, dict[str, Any]]:
    """The scores of a stage (the newest; 0 is the base) on the tasks learned so far, by task.

    engram.evaluate("my-model", stage=1)["reviews"]["score"]
    """
    from engram.lineage import verbs

    return verbs.evaluate(folder, stage, tasks, mode, data, say)


def _split(rows: Rows, seed: int, where: str) -> Split:
    if isinstance(rows, str | Path):
        return file_split(rows, None, seed)
    return Split(tuple(as_row(row, f"{where}, row {n}") for n, row in enumerate(rows, 1)))
