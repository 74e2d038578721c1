"""The verbs as Python calls, as short as on the command line, which calls them too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram.config import Config, load_config
from engram.data.forms import Notes, Row, as_row
from engram.data.stream import file_split
from engram.data.task import Split, Task
from engram.lineage.lineage import Lineage
from engram.reporting.results import method_name


if TYPE_CHECKING:
    from transformers import TrainerCallback

    from engram.reporting.read import Run

Rows = str | Path | Sequence[Row]
TaskRows = Rows | Mapping[str, Any]  # a mapping has path or hub, and templates
Say = Callable[[str], None]


def silent(line: str) -> None:
    """What the verbs do with their notes unless they are given something else."""


def init(
    folder: str | Path,
    base: str | None = None,
    config: str | Path | None = None,
    from_adapter: str | Path | None = None,
    **settings: Any,
) -> Lineage:
    """A new lineage on an untouched base, or on a PEFT adapter that is there already.

        engram.init("my-model", base="Qwen/Qwen3-0.6B", method="replay")
        engram.init("my-model", from_adapter="outputs/checkpoint-500")
        engram.init("my-model", base="Qwen/Qwen3-0.6B", adapter=None)  # all weights

    An adapter brings its settings, and its base unless one is given. `config` is a YAML, `settings`
    are laid over it; a key with dots is written `**{"training.learning_rate": 1e-4}`.
    """
    from engram.verbs import init as verb

    given = settings | ({"base": base} if base else {})
    return verb.init(folder, load_config(config or {}, given), from_adapter)


def learn(
    folder: str | Path,
    name: str,
    train: TaskRows,
    test: TaskRows | None = None,
    dev: TaskRows | None = None,
    metric: str = "exact_match",
    options: Sequence[str] | None = None,
    data: str | Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    say: Say = silent,
    training: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Learn one more task from a file of rows or from rows; returns the new stage's ledger line.

        engram.learn("my-model", "reviews", train="reviews.jsonl", test="reviews-test.jsonl")

    `training` is laid over the lineage's own for this task alone.
    """
    from engram.verbs import learn as verb

    task = task_of(folder, name, train, test, dev, metric, options, training)
    return verb.learn(folder, task, data, callbacks, say)


def task_of(
    folder: str | Path,
    name: str,
    train: TaskRows,
    test: TaskRows | None = None,
    dev: TaskRows | None = None,
    metric: str = "exact_match",
    options: Sequence[str] | None = None,
    training: dict[str, Any] | None = None,
) -> Task:
    """A task from files of rows or from rows, to be learned by the lineage in `folder`."""
    seed = Lineage(folder).config.seed
    splits = {
        split: _split(rows, split, seed, f"{name} {split}")
        for split, rows in (("train", train), ("dev", dev), ("test", test))
        if rows is not None
    }
    chosen = tuple(options) if options else None
    return Task(name, metric=metric, options=chosen, training=training or {}, **splits)


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
    from engram.verbs import run as verb

    if not isinstance(config, Config):
        config = run_config(config, settings)
    return verb.run(config, callbacks, say)


def run_config(path: str | Path, settings: list[str] | dict[str, Any] | None = None) -> Config:
    """The settings of a run with a place for its lineage."""
    config = load_config(path, settings)
    name = method_name(config.method, config.mode)
    config.lineage = config.lineage or str(Path(Path(path).stem) / name)
    return config


def compare(
    grid: str | Path | dict[str, Any],
    /,
    jobs: int = 1,
    say: Say = silent,
    ray: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Methods on the same task orders and seeds, a lineage each: their scores, side by side.

        found = engram.compare("grid.yaml", jobs=2)
        found["lines"][1]["to_baseline"]["overall"]["differs"]

    The same call again goes on where it was stopped. A YAML that names no lineage gets its own
    name. A cell that breaks stops no other; its `error` says why. `ray` is the address of a cluster
    to run them on.
    """
    from engram.comparison.cluster import starter
    from engram.comparison.grid import read_grid
    from engram.verbs import compare as verb

    begin = starter(ray) if ray else None
    return verb.compare(read_grid(grid, settings), jobs, say, begin)


def dry_run_of_compare(
    grid: str | Path | dict[str, Any], /, jobs: int = 1, say: Say = silent, **settings: Any
) -> dict[str, Any]:
    """What `compare` would run and cost, from one cell a line. Writes nothing."""
    from engram.comparison.grid import read_grid
    from engram.verbs import compare_dry_run as verb

    return verb.dry_run(read_grid(grid, settings), jobs, say)


def dry_run(config: Config | str | Path, say: Say = silent, **settings: Any) -> dict[str, Any]:
    """What `run` would do and cost: rows, tokens, steps, seconds, memory, disk. Writes nothing."""
    from engram.verbs import dry_run as verb

    if not isinstance(config, Config):
        config = run_config(config, settings)
    return verb.dry_run(config, say)


def dry_run_of_learn(folder: str | Path, task: Task, say: Say = silent) -> dict[str, Any]:
    """What `learn` would do and cost, for a task of `task_of`. Writes nothing."""
    from engram.verbs import dry_run as verb

    return verb.dry_run_of_learn(folder, task, say)


def evaluate(
    folder: str | Path,
    stage: int | None = None,
    tasks: Sequence[str] = (),
    mode: str | None = None,
    data: str | Path | None = None,
    say: Say = silent,
    predictions: str | Path | None = None,
) -> dict[str, dict[str, Any]]:
    """The scores of a stage (the newest; 0 is the base) on the tasks learned so far, by task.

        engram.evaluate("my-model", stage=1)["reviews"]["score"]

    `predictions` is a JSON lines file to write what was answered to every row.
    """
    from engram.verbs import evaluate as verb

    return verb.evaluate(folder, stage, tasks, mode, data, say, predictions)


def probe(
    folder: str | Path,
    rows: Rows,
    learned: int | None = None,
    stages: Sequence[int] = (),
    say: Say = silent,
) -> dict[str, Any]:
    """What every stage, or `stages`, makes of rows beyond the tasks: loss, recognition, recall.

    engram.probe("my-model", "facts.jsonl", learned=1)["stages"][-1]["recall"]
    """
    from engram.verbs import probe as verb

    return verb.probe(folder, rows, learned, stages, say)


def answer(
    folder: str | Path,
    prompts: str | Sequence[str],
    stage: int | None = None,
    options: Sequence[str] = (),
    max_new_tokens: int | None = None,
    chat: bool = False,
    say: Say = silent,
) -> list[str]:
    """What a stage (the newest; 0 is the base) answers: `engram try` for one prompt or many.

    engram.answer("my-model", "Great pasta, slow service. Sentiment:", stage=1)
    """
    from engram.verbs import answer as verb

    asked = [prompts] if isinstance(prompts, str) else prompts
    return verb.answer(folder, asked, stage, options, max_new_tokens, chat, say)


def show(folder: str | Path, stage: int | None = None) -> dict[str, Any]:
    """All that is known of a stage (the newest; 0 is the base)."""
    from engram.verbs import show as verb

    return verb.show(folder, stage)


def report(
    folders: str | Path | Sequence[str | Path], out: str | Path = "report.html"
) -> tuple[list[Run], list[Path]]:
    """Make a page of lineages, or of folders that hold some; what was read, and the files.

        engram.report("quickstart")
        engram.report(["runs/replay", "runs/recurrent_kif"], out="both.html")

    Beside the page the same numbers are put as Markdown and as CSV.
    """
    from engram.reporting.making import report as make

    return make([folders] if isinstance(folders, str | Path) else folders, out)


def revert(folder: str | Path, to: int | None = None) -> dict[str, Any]:
    """Go back to stage `to`, one stage by default; returns the ledger's new line."""
    from engram.verbs import revert as verb

    return verb.revert(folder, to)


def verify(folder: str | Path) -> list[str]:
    """What is not as the ledger says, a line each; empty if all is well."""
    from engram.verbs import verify as verb

    return verb.verify(folder)


def export(
    folder: str | Path, out: str | Path, stage: int | None = None, dtype: str | None = None
) -> Path:
    """Write a stage as one plain model with everything merged in, for `AutoModel...`."""
    from engram.verbs import export as verb

    return verb.export(folder, out, stage, dtype)


def rebase(folder: str | Path, base: str, revision: str | None = None) -> dict[str, Any]:
    """Point a lineage at its base's new place; the files must be the same."""
    from engram.verbs import rebase as verb

    return verb.rebase(folder, base, revision)


def push(
    folder: str | Path,
    repository: str,
    stage: int | None = None,
    merged: bool = False,
    private: bool = False,
) -> str:
    """Upload a stage to the hub, without the remembered rows; returns its address."""
    from engram.verbs import push as verb

    return verb.push(folder, repository, stage, merged, private)


def _split(rows: TaskRows, split: str, seed: int, where: str) -> Split:
    if isinstance(rows, str | Path | Mapping):
        return file_split(rows, None, seed, split)
    notes = Notes()
    made = [as_row(row, f"{where}, row {n}", notes) for n, row in enumerate(rows, 1)]
    return Split(tuple(made), notes=notes.lines(where))
