"""The verbs as Python calls. The command line is made from them (`perdure.cli.from_api`).

A verb's parameters, their types and their defaults are in its signature here and nowhere else,
their meanings in its `Args`. A keyword-only parameter is an object that only Python can give; the
command line leaves it out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.config import Config, Dtype, ScoringMode, load_config
from perdure.data.forms import Notes, Row, as_row
from perdure.data.stream import file_split
from perdure.data.task import Split, Task
from perdure.lineage.lineage import Lineage
from perdure.reporting.results import method_name
from perdure.say import Say, silent


if TYPE_CHECKING:
    from transformers import TrainerCallback

    from perdure.reporting.read import Run

Rows = str | Path | Sequence[Row]
TaskRows = Rows | Mapping[str, Any]  # a mapping has path or hub, and templates


def init(
    folder: str | Path,
    base: str | None = None,
    config: Config | str | Path | None = None,
    from_adapter: str | Path | None = None,
    **settings: Any,
) -> Lineage:
    """Make a lineage: a folder whose stage 0 is the untouched base.

        perdure.init("my-model", base="Qwen/Qwen3-0.6B", method="replay")
        perdure.init("my-model", from_adapter="outputs/checkpoint-500")
        perdure.init("my-model", base="Qwen/Qwen3-0.6B", adapter=None)  # all weights

    A setting's key with dots is written `**{"training.learning_rate": 1e-4}`.

    Args:
        folder: The lineage.
        base: A model's folder or its name on the hub, `default` or `smollm2`.
        config: The settings, as for `perdure run`.
        from_adapter: A PEFT adapter to go on from; it names its base, and its settings are taken.
        **settings: Settings, laid over the YAML's.

    Raises:
        PerdureError: the folder is not empty, the base or the adapter is not there or not of that
            base, a setting is wrong, or the adapter would fail later.
    """
    if not isinstance(config, Config):
        config = load_config(config or {}, settings)
    config.base = base or config.base
    from perdure.verbs import init as verb

    return verb.init(folder, config, adapter=from_adapter)


def learn(
    folder: str | Path,
    name: str,
    train: TaskRows,
    test: TaskRows | None = None,
    dev: TaskRows | None = None,
    metric: str = "exact_match",
    options: Sequence[str] | None = None,
    training: dict[str, Any] | None = None,
    data: str | Path | None = None,
    dry_run: bool = False,
    *,
    callbacks: Sequence["TrainerCallback"] = (),
    say: Say = silent,
) -> dict[str, Any]:
    """Learn one more task as a new stage. If it was stopped, repeat it to go on from there.

        perdure.learn("my-model", "reviews", train="reviews.jsonl", test="reviews-test.jsonl")

    Rows are given as a file, as a list of rows, or as a mapping with `path` or `hub` and templates.
    If the newest stage has learned just this task from just these rows, there is nothing to do.

    Args:
        folder: The lineage.
        name: What the task is called.
        train: The rows to learn: a file, or hub:OWNER/NAME[:SPLIT].
        test: Rows to score the task on.
        dev: Rows to choose settings on.
        metric: How an answer is scored.
        options: The possible answers, if they are closed.
        training: Training settings for this task alone, laid over the lineage's.
        data: Folder of the benchmarks' rows; PERDURE_DATA names it otherwise.
        dry_run: Say what it would do and cost; write nothing.
        callbacks: Callbacks of the task's Trainer.
        say: Takes each note and each warning.

    Returns:
        The new stage's line of the ledger, or what a dry run found.

    Raises:
        PerdureError: not a lineage, a second writer, another base, or rows the model cannot take.
    """
    seed = Lineage(folder).config.seed
    splits = {
        split: _split(rows, split, seed, f"{name} {split}")
        for split, rows in (("train", train), ("dev", dev), ("test", test))
        if rows is not None
    }
    chosen = tuple(options) if options else None
    task = Task(name, metric=metric, options=chosen, training=training or {}, **splits)
    if dry_run:
        from perdure.verbs.dry_run import dry_run_of_learn

        return dry_run_of_learn(folder, task, say)
    from perdure.verbs import learn as verb

    return verb.learn(folder, task, data=data, callbacks=callbacks, say=say)


def run(
    config: Config | str | Path | dict[str, Any],
    data: str | Path | None = None,
    *,
    callbacks: Sequence["TrainerCallback"] = (),
    say: Say = silent,
    **settings: Any,
) -> Lineage:
    """Learn a stream of tasks one after another. If it was stopped, repeat it to go on from there.

        perdure.run("examples/quickstart.yaml", method="recurrent_kif").matrix()

    A YAML that names no lineage gets `<its name>/<the method's name>`.

    Args:
        config: The settings of the run.
        data: Folder of the benchmarks' rows; PERDURE_DATA names it otherwise.
        callbacks: Callbacks of every task's Trainer.
        say: Takes each note and each warning.
        **settings: Settings, laid over the YAML's.

    Raises:
        PerdureError: as `init` and `learn`, or other settings than those the lineage was made with.
    """
    config = run_config(config, data, settings)
    from perdure.verbs import run as verb

    return verb.run(config, callbacks=callbacks, say=say)


def dry_run(
    config: Config | str | Path | dict[str, Any],
    data: str | Path | None = None,
    *,
    say: Say = silent,
    **settings: Any,
) -> dict[str, Any]:
    """What `run` would do and cost: rows, tokens, steps, seconds, memory, disk. Writes nothing.

    Raises:
        PerdureError: whatever would stop the run, now or in its last hour.
    """
    config = run_config(config, data, settings)
    from perdure.verbs import dry_run as verb

    return verb.dry_run(config, say)


def run_config(
    config: Config | str | Path | dict[str, Any],
    data: str | Path | None = None,
    settings: list[str] | dict[str, Any] | None = None,
) -> Config:
    """The settings of a run, with a place for its lineage."""
    if not isinstance(config, Config):
        source, config = config, load_config(config, settings)
        if not config.lineage and not isinstance(source, dict):
            name = method_name(config.method, config.mode)
            config.lineage = str(Path(Path(source).stem) / name)
    config.data = str(data) if data else config.data
    return config


def compare(
    grid: str | Path | dict[str, Any],
    /,
    jobs: int = 1,
    ray: str | None = None,
    data: str | Path | None = None,
    dry_run: bool = False,
    *,
    say: Say = silent,
    **settings: Any,
) -> dict[str, Any]:
    """Run every method on the same task orders and seeds, and compare what they keep and cost.
    A cell that breaks stops no other. If it was stopped, repeat it to go on from there.

        comparison = perdure.compare("grid.yaml", jobs=2)
        comparison["lines"][1]["to_baseline"]["overall"]["differs"]

    Each cell is a lineage of its own; the `error` of one that broke says why. A YAML that names no
    lineage gets its own name.

    Args:
        grid: The settings of a run, and a grid.
        jobs: How many cells run at a time.
        ray: Run the cells on the Ray cluster at this address; `local` starts one.
        data: Folder of the benchmarks' rows; PERDURE_DATA names it otherwise.
        dry_run: Say what it would do and cost; write nothing.
        say: Takes each note and each warning.
        **settings: Settings, laid over the YAML's.

    Raises:
        PerdureError: settings, rows or a base that no cell could run with, or another comparison is
            writing to the folder.
    """
    from perdure.comparison.grid import read_grid

    lines = read_grid(grid, settings | ({"data": str(data)} if data else {}))
    if dry_run:
        from perdure.verbs import compare_dry_run

        return compare_dry_run.dry_run(lines, jobs=jobs, say=say)
    from perdure.comparison.cluster import starter
    from perdure.verbs import compare as verb

    return verb.compare(lines, jobs=jobs, say=say, begin=starter(ray) if ray else None)


def evaluate(
    folder: str | Path,
    stage: int | None = None,
    tasks: Sequence[str] = (),
    mode: ScoringMode | None = None,
    predictions: str | Path | None = None,
    data: str | Path | None = None,
    *,
    say: Say = silent,
) -> dict[str, dict[str, Any]]:
    """Score a stage on the tasks learned so far. Changes nothing.

        perdure.evaluate("my-model", stage=1)["reviews"]["score"]

    Args:
        folder: The lineage.
        stage: Which stage; 0 is the base, the newest if left out.
        tasks: Score only these tasks; all if left out.
        mode: How rows are answered; the lineage's own mode if left out.
        predictions: Write the answer to every test row to this JSON lines file: `task`, `row`
            (from 1), the row itself, `prediction` and `score`.
        data: Folder of the benchmarks' rows; PERDURE_DATA names it otherwise.
        say: Takes each note and each warning.

    Returns:
        By task, its score and how it was taken.

    Raises:
        PerdureError: no such stage or task, a mode the tasks do not allow, or no place for
            `predictions`.
    """
    from perdure.verbs import evaluate as verb

    return verb.evaluate(
        folder,
        stage=stage,
        tasks=tasks,
        mode=mode,
        predictions=predictions,
        data=data,
        say=say,
    )


def probe(
    folder: str | Path,
    rows: Rows,
    learned: int | None = None,
    stages: Sequence[int] = (),
    *,
    say: Say = silent,
) -> dict[str, Any]:
    """Ask all stages rows beyond the tasks: loss, forgetting, recognition, recall. Changes nothing.

        perdure.probe("my-model", "facts.jsonl", learned=1)["stages"][-1]["recall"]

    What the numbers mean is said in `perdure.measure.probes`; what cannot be known is None.

    Args:
        folder: The lineage.
        rows: Rows to ask, some with a `foil`, a wrong completion that was never taught.
        learned: The stage at which the rows were taught; says what is kept of them. That stage
            and the one before it are asked as well.
        stages: Only these stages; all of the present history if left out.
        say: Takes each note and each warning.

    Raises:
        PerdureError: no such stage, one whose weights are gone, or rows that cannot be asked.
    """
    from perdure.verbs import probe as verb

    return verb.probe(folder, rows, learned=learned, stages=stages, say=say)


def answer(
    folder: str | Path,
    prompts: str | Sequence[str],
    stage: int | None = None,
    options: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    chat: bool = False,
    *,
    say: Say = silent,
) -> list[str]:
    """Ask a stage: it writes an answer, or chooses among options. Changes nothing.

        perdure.answer("my-model", "Great pasta, slow service. Sentiment:", stage=1)

    This is `perdure try`. A generative model writes greedily, or chooses among `options`; an
    encoder chooses among `options` or all labels it has learned.

    Args:
        folder: The lineage.
        prompts: What to answer.
        stage: Which stage; 0 is the base, the newest if left out.
        options: The answers to choose from.
        max_new_tokens: Write at most so many tokens; the lineage's `max_completion_length` if left
            out.
        chat: Take the prompt as a user's message, in the tokenizer's chat template.
        say: Takes each note and each warning.

    Raises:
        PerdureError: no such stage, an empty prompt, or an encoder that has not learned a label
    yet.
    """
    from perdure.verbs import answer as verb

    return verb.answer(
        folder,
        [prompts] if isinstance(prompts, str) else prompts,
        stage=stage,
        options=options or (),
        max_new_tokens=max_new_tokens,
        chat=chat,
        say=say,
    )


def log(folder: str | Path) -> list[dict[str, Any]]:
    """List the history of a lineage, the newest last; also what was reverted.

        [(entry["stage"], entry["task"]) for entry in perdure.log("my-model") if entry["active"]]

    Args:
        folder: The lineage.

    Returns:
        A mapping for each line of the ledger; `active` says whether its stage is part of the
        present history.
    """
    from perdure.verbs import log as verb

    return verb.log(folder)


def show(folder: str | Path, stage: int | None = None) -> dict[str, Any]:
    """Show a stage: what it learned, when, with which settings, its scores, what to load.

    In what is returned, `rehearsed` says how many rows of earlier tasks were rehearsed and how
    often, `active` whether the stage is part of the present history, and `line_of` which stages
    lead from the base to it.

    Args:
        folder: The lineage.
        stage: Which stage; 0 is the base, the newest if left out.

    Raises:
        PerdureError: no such stage.
    """
    from perdure.verbs import show as verb

    return verb.show(folder, stage)


def report(
    folders: str | Path | Sequence[str | Path], out: str | Path = "report.html"
) -> "tuple[list[Run], list[Path]]":
    """Make a page of lineages: what was learned and forgotten, at what cost, and how to repeat it.

        perdure.report("quickstart")
        perdure.report(["runs/replay", "runs/recurrent_kif"], out="both.html")

    Args:
        folders: Lineages, or folders that hold some.
        out: The page; the same numbers are put beside it as Markdown (.md) and CSV (.csv).

    Returns:
        The lineages that were read, and the files that were written.

    Raises:
        PerdureError: a folder without a lineage, or a file in the way that is not a report.
    """
    from perdure.reporting.making import report as make

    return make([folders] if isinstance(folders, str | Path) else folders, out)


def revert(folder: str | Path, to: int | None = None) -> dict[str, Any]:
    """Go back to an earlier stage. Deletes nothing: a later stage can be gone back to as well.

    Adds a line to the ledger. The stages after `to` stay on disk, inactive; their tasks are no
    longer scored, and their remembered rows are no longer rehearsed.

    Args:
        folder: The lineage.
        to: The stage to go back to; one back if left out, 0 is the base.

    Returns:
        The new line of the ledger.

    Raises:
        PerdureError: there is no such stage, it is the newest already, or its weights are gone.
    """
    from perdure.verbs import revert as verb

    return verb.revert(folder, to)


def verify(folder: str | Path) -> list[str]:
    """Check every hash of a lineage: the ledger, the stages' files, the base. Changes nothing.

    Args:
        folder: The lineage.

    Returns:
        What is not as the ledger says, a line each; empty if all is well.

    Raises:
        PerdureError: not a lineage, or a broken chain: past that, no line can be believed.
    """
    from perdure.verbs import verify as verb

    return verb.verify(folder)


def export(
    folder: str | Path,
    out: str | Path,
    stage: int | None = None,
    dtype: Dtype | None = None,
) -> Path:
    """Write a stage as one plain model, everything merged in, that loads with `AutoModel`.

    W' = W + (what the adapter adds), summed in fp32 and rounded once, to `dtype`. The tokenizer and
    a card are written beside the weights, and `head.safetensors` for an encoder; the remembered
    rows are not. A base that was quantised for learning is taken unquantised.

    Args:
        folder: The lineage.
        out: A new folder for the model.
        stage: Which stage; 0 is the base, the newest if left out.
        dtype: The type of the weights; the base's own if left out.

    Returns:
        The folder of the model.

    Raises:
        PerdureError: no such stage, `out` is not empty, an adapter that cannot be merged, or a
            model that does not come back from its files as it was.
    """
    from perdure.verbs import export as verb

    return verb.export(folder, out, stage=stage, dtype=dtype)


def push(
    folder: str | Path,
    repository: str,
    stage: int | None = None,
    merged: bool = False,
    private: bool = False,
) -> str:
    """Upload a stage to the hub, with its card and without the remembered rows.

    Args:
        folder: The lineage.
        repository: The repository; it is made if it is not there.
        stage: Which stage; the newest if left out.
        merged: Upload one plain model, as `perdure export` writes it.
        private: Make the repository private, if it is not there yet.

    Returns:
        Its address.

    Raises:
        PerdureError: no such stage, its weights are gone, a name the hub does not take, or whatever
            the hub answers (no token, no right to write, no connection).
    """
    from perdure.verbs import push as verb

    return verb.push(folder, repository, stage=stage, merged=merged, private=private)


def rebase(folder: str | Path, base: str, revision: str | None = None) -> dict[str, Any]:
    """Say where the base is now. Its files must be those that the lineage was made on.

    They are compared by their sha256: a stage on other weights than it was learned on would give
    wrong answers and no error.

    Args:
        folder: The lineage.
        base: The base's new folder or name.
        revision: A commit, for a name on the hub.

    Returns:
        The new line of the ledger.

    Raises:
        PerdureError: no base there, or its files differ.
    """
    from perdure.verbs import rebase as verb

    return verb.rebase(folder, base, revision)


def methods(name: str | None = None) -> list[dict[str, Any]]:
    """List the methods, or show one: what it does, its keywords, its presets.

    Args:
        name: One method, with everything that is known of it.

    Returns:
        A mapping for each method; the package `perdure.methods` holds the methods themselves.

    Raises:
        PerdureError: there is no method of that name.
    """
    from perdure.verbs import methods as verb

    return verb.methods(name)


def _split(rows: TaskRows, split: str, seed: int, where: str) -> Split:
    if isinstance(rows, str | Path | Mapping):
        return file_split(rows, None, seed, split)
    notes = Notes()
    made = [as_row(row, f"{where}, row {n}", notes) for n, row in enumerate(rows, 1)]
    return Split(tuple(made), notes=notes.lines(where))
