"""The verbs as Python functions. The command line is derived from them (`perdure.cli.from_api`).

The parameters of a verb, with their types and defaults, are declared only in its signature here,
and their meanings in its `Args`. Keyword-only parameters take Python objects, so the command line
does not have them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure import processes
from perdure.calls import checked, leaves_no_trace
from perdure.config import (
    Codec,
    Config,
    Dtype,
    PresetName,
    ScoringMode,
    Vocabulary,
    load_config,
    read_settings,
)
from perdure.data.conversations import Conversations
from perdure.data.forms import Notes, Row, as_row
from perdure.data.opening import file_split
from perdure.data.opening import hold_out as held_out_split
from perdure.data.task import Split, Task
from perdure.errors import PerdureError
from perdure.lineage.experts import merge_rule
from perdure.lineage.lineage import Lineage
from perdure.measure.custom_metric import Metric, metric_name
from perdure.reporting.results import method_name
from perdure.say import Say, silent
from perdure.seeds import derive


if TYPE_CHECKING:
    from transformers import TrainerCallback

    from perdure.reporting.read import Run
    from perdure.verbs.chat import Chat

Rows = str | Path | Sequence[Row]
TaskRows = Rows | Mapping[str, Any]  # a mapping has path or hub, and templates


@checked
@leaves_no_trace
def init(
    folder: str | Path,
    base: str | None = None,
    config: Config | str | Path | dict[str, Any] | None = None,
    from_adapter: str | Path | None = None,
    *,
    say: Say = silent,
    **settings: Any,
) -> Lineage:
    """Make a lineage: a folder whose stage 0 is the untouched base.

        perdure.init("my-model", base="Qwen/Qwen3-0.6B", method="replay")
        perdure.init("my-model", from_adapter="outputs/checkpoint-500")
        perdure.init("my-model", base="Qwen/Qwen3-0.6B", adapter=None)  # all weights

    Settings that are left out of `config` and `settings` get the values that a practitioner would
    choose for a language model: Recurrent-KIF with an anchor to the base, LoRA on all linear
    layers, and a learning rate for it; without an adapter, and for an encoder, the method is
    `replay`. All of them are in the lineage's settings. A `Config` is used as it is.

    Write a key with a dot as `**{"training.learning_rate": 1e-4}`.

    Args:
        folder: The lineage.
        base: A model's folder or its name on the hub, `default` or `smollm2`.
        config: The settings, as for `perdure run`.
        from_adapter: A PEFT adapter to continue from. It names its base, and its settings are used.
        say: Called with each warning about the base.
        **settings: Settings that override the YAML's.

    Returns:
        The new lineage.

    Raises:
        PerdureError: the folder is not empty, the base or the adapter does not exist, the base
            lacks weights, the adapter belongs to another base, a setting is wrong, or the adapter
            would fail later.
    """
    chosen = None if isinstance(config, Config) else read_settings(config or {}, settings)
    config = _with_settings(config or {}, settings)
    config.base = base or config.base
    from perdure.verbs import init as verb

    return verb.init(folder, config, adapter=from_adapter, chosen=chosen, say=say)


@checked
@leaves_no_trace
@processes.in_python()
def learn(
    folder: str | Path,
    name: str,
    train: TaskRows,
    test: TaskRows | None = None,
    dev: TaskRows | None = None,
    hold_out: float | None = None,
    metric: str | Metric = "exact_match",
    options: Sequence[str] | None = None,
    training: dict[str, Any] | None = None,
    data: str | Path | None = None,
    dry_run: bool = False,
    full: bool = False,
    *,
    callbacks: Sequence["TrainerCallback"] = (),
    say: Say = silent,
) -> dict[str, Any]:
    """Learn one more task as a new stage. After an interruption, repeat the command to continue.

        perdure.learn("my-model", "reviews", train="reviews.jsonl", test="reviews-test.jsonl")

    Rows are given as a file, as a list of rows, or as a mapping with `path` or `hub` and templates.
    If the newest stage has already learned this task from the same rows, nothing is done.

    Args:
        folder: The lineage.
        name: The name of the task.
        train: The rows to learn: a file, or hub:OWNER/NAME[:SPLIT].
        test: Rows to score the task on.
        dev: Rows that are measured while the task is learned: for early stopping and the best
            weights.
        hold_out: The share of the train rows to take as test rows instead, such as 0.1.
        metric: How an answer is scored: exact_match, rouge_l, token_f1, json_valid, json_fields, or
            a function of yours as MODULE:FUNCTION.
        options: The possible answers, if they are closed.
        training: Training settings for this task only; they override the lineage's.
        data: Folder with the benchmarks' rows. Default: the environment variable PERDURE_DATA.
        dry_run: Report what it would do and cost, without writing anything.
        full: Score the old tasks on all of their test rows, although the lineage has
            scoring.sample.
        callbacks: Callbacks of the task's Trainer.
        say: Called with each note and each warning.

    Returns:
        The new stage's line of the ledger, or the findings of a dry run.

    Raises:
        PerdureError: the folder is not a lineage, another process is writing to it, the base has
            changed, or the model cannot learn the rows.
        RefusedError: the stage lost more than the lineage's gate allows.
    """
    seed = Lineage(folder).config.seed
    splits = {
        split: _split(rows, split, seed, f"{name} {split}")
        for split, rows in (("train", train), ("dev", dev), ("test", test))
        if rows is not None
    }
    if hold_out is not None:
        if test is not None:
            raise PerdureError(f"{name}: has test rows of its own; leave out hold_out")
        splits["train"], splits["test"] = held_out_split(
            splits["train"],
            share=hold_out,
            seed=derive(seed, "held out", name),
            where=f"{name}: hold_out",
        )
    chosen = tuple(options) if options else None
    task = Task(name, metric=metric_name(metric), options=chosen, training=training or {}, **splits)
    if dry_run:
        from perdure.verbs.dry_run import dry_run_of_learn

        return dry_run_of_learn(folder, task, say)
    from perdure.verbs import learn as verb

    return verb.learn(folder, task, data=data, callbacks=callbacks, say=say, full=full)


@checked
@leaves_no_trace
def adopt(
    folder: str | Path,
    checkpoint: str | Path,
    name: str,
    train: TaskRows | None = None,
    test: TaskRows | None = None,
    metric: str | Metric = "exact_match",
    options: Sequence[str] | None = None,
    data: str | Path | None = None,
    *,
    say: Say = silent,
) -> dict[str, Any]:
    """Record a checkpoint that was trained elsewhere as a new stage, scored and judged as others.

        perdure.adopt("my-model", "outputs/checkpoint-500", "dpo", test="held-out.jsonl")

    It must have been trained from the newest stage (or, as the first stage, from the base), with
    the lineage's `adapter:` settings, or with all weights if the lineage trains these. Which stage
    it was trained from cannot be checked: what another stage had learned is then lost.

    Args:
        folder: The lineage.
        checkpoint: The folder of a PEFT adapter, or of a whole model if the lineage has
            `adapter: null`.
        name: The name of the task that it has learned.
        train: The rows that it was trained on. Some of them are remembered, as of any task.
        test: Rows to score the task on.
        metric: How an answer is scored, as for `learn`.
        options: The possible answers, if they are closed.
        data: Folder with the benchmarks' rows. Default: the environment variable PERDURE_DATA.
        say: Called with each note and each warning.

    Returns:
        The new stage's line of the ledger.

    Raises:
        PerdureError: the checkpoint is of another base, has other shapes or cannot be read, or the
            rows cannot be used.
    """
    task = _trained_elsewhere(folder, name, train, test, metric, options)
    from perdure.verbs import adopt as verb

    return verb.adopt(folder, checkpoint, task, data=data, say=say)


@checked
@leaves_no_trace
def merge(
    models: str | Path | Sequence[str | Path],
    rule: str = "average",
    weights: Sequence[float] | None = None,
    base: str | None = None,
    into: str | Path | None = None,
    rank: int | None = None,
    full: bool = False,
    dtype: Dtype | None = None,
    max_memory: str | int | None = None,
    after: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    statistics: Sequence[str | Path] | None = None,
    rows: TaskRows | None = None,
    preset: PresetName | None = None,
    vocabulary: Vocabulary = "same",
    name: str | None = None,
    train: TaskRows | None = None,
    test: TaskRows | None = None,
    dev: TaskRows | None = None,
    metric: str | Metric = "exact_match",
    options: Sequence[str] | None = None,
    data: str | Path | None = None,
    search: bool = False,
    undo: int | None = None,
    *,
    keywords: Mapping[str, Any] | None = None,
    say: Say = silent,
) -> dict[str, Any]:
    """Merge checkpoints of one base into a new model, or one more checkpoint into a lineage.

        perdure.merge(["sft", "code", "maths"], base="Qwen/Qwen3-0.6B", into="merged", rule="ties")
        perdure.merge(["my-model", "outputs/checkpoint-500"], rule="ema", test="code.jsonl")

    With `into`, all checkpoints are merged in the order given, and the folder is a plain model with
    the base's config, tokenizer and chat template. A checkpoint is the folder of a model or of a
    LoRA adapter, a name on the hub that is in its cache, or a lineage, of which the newest stage is
    taken. If all are LoRA adapters and the rule only adds task vectors, the result is a LoRA
    adapter, with all of their sum unless `rank` cuts it.

    Without `into`, the checkpoint arrives in the lineage as its next stage, which is scored and
    judged as others are, and which `revert` undoes. The newest stage is what was merged so far; if
    this rule has not made it, it counts as the first checkpoint.

    With `undo`, an arrival is taken out of the newest stage again, as a stage of its own. Its
    checkpoint must be there as it was. The result is exact, bit for bit, if no sum was rounded:
    with the keyword `exact`, bf16 or fp16 models, and weights that are powers of two. Otherwise it
    is exact up to the rounding of the sums, and a line says how far that goes. The rules `ema`,
    `slerp`, `opcm` and `magmax` cannot take an arrival out.

    After an interruption, repeat the command to continue.

    Args:
        models: The checkpoints; or a lineage and one checkpoint. Words rule.KEY=VALUE are keywords
            of the rule, and after.NAME.KEY=VALUE those of a treatment.
        rule: How they are merged; `perdure rules` lists the rules.
        weights: A weight for each checkpoint, in their order.
        base: The model from which the checkpoints were trained. Default: the one that an adapter
            or a lineage names.
        into: A new folder for the merged model.
        rank: The highest rank of a merged LoRA adapter. Default: as many as the sum has, or in a
            lineage those of its adapter.
        full: Write a whole model even if all checkpoints are adapters.
        dtype: The data type of the weights. Default: that of the base, or of the first adapter.
        max_memory: The most memory for weights, such as 2GB, beside that of Python and its
            libraries. The plan, which is printed first, says how much is needed.
        after: A treatment of the merged weights; `perdure rules` lists them. In Python their names,
            or a mapping from their names to their keywords.
        statistics: The folder that `perdure statistics` wrote, for each checkpoint in their order,
            if the rule needs one.
        rows: Rows on which the rule learns the weights that are not given, a few of all tasks that
            the model shall do; for `frank_wolfe`.
        preset: A recipe in place of a rule. `reinstruct` adds what continued pretraining has
            changed of a base to the base's instruct model; give both, in this order.
        vocabulary: What is done with checkpoints that have other tokens than the base, or have them
            in another order. `same` refuses them. `base` takes for each token of the base the row
            that the checkpoint has for it, leaves the rows of tokens that the checkpoint lacks
            unchanged, and leaves its own tokens out. `union` adds these to the base's, with the
            weighted mean of their rows.
        name: In a lineage, the name of the task that the checkpoint has learned. Default: the name
            of its folder.
        train: In a lineage, the rows that it was trained on. Some of them are remembered.
        test: In a lineage, rows to score the task on.
        dev: In a lineage, rows of the task on which the weights of later arrivals are chosen
            (`search`).
        metric: How an answer is scored, as for `learn`.
        options: The possible answers, if they are closed.
        data: Folder with the benchmarks' rows. Default: the environment variable PERDURE_DATA.
        search: In a lineage with a gate, if it would refuse the stage, try 1/2, 1/4 and 1/8 of the
            weight, and take the first that stays within the gate. Old tasks are scored on their dev
            rows then, or else on test rows.
        undo: In a lineage, the stage whose arrival is taken out; a checkpoint is given only if it
            is elsewhere than it was. It is exact, bit for bit, if no sum was rounded: with
            rule.exact=true, bf16 or fp16 models, and weights that are powers of two. Otherwise it
            is exact up to the rounding, which is printed.
        keywords: The keywords of the rule.
        say: Called with the plan, each note and each warning.

    Returns:
        What was merged, with norms and cosines of the task vectors; or the new stage's line of the
        ledger.

    Raises:
        PerdureError: the checkpoints are of different models or vocabularies, quantised or damaged,
            the rule cannot merge them, or the memory is not enough.
        RefusedError: the stage lost more than the lineage's gate allows.
    """
    names = [str(model) for model in ([models] if isinstance(models, str | Path) else models)]
    from perdure.verbs import merge as verb

    verb.check_vocabulary(vocabulary)
    if undo is not None:
        others = {"into": into, "weights": weights, "base": base, "dtype": dtype, "name": name}
        others |= {
            "train": train,
            "test": test,
            "dev": dev,
            "options": options,
            "full": full or None,
        }
        others |= {"search": search or None, "after": after or None, "preset": preset}
        others |= {"statistics": statistics, "rows": rows}
        others |= {"vocabulary": None if vocabulary == "same" else vocabulary}
        others |= {"rule": None if rule == "average" else rule, "keywords": keywords or None}
        for key, value in others.items():
            if value is not None:
                raise PerdureError(
                    f"{key}: undo takes an arrival out as it was merged; leave {key} out"
                )
        folder, checkpoint = verb.lineage_and_moved(names)
        from perdure.verbs import merge_undo as removal

        return removal.merge_undo(
            folder,
            undo,
            checkpoint,
            rank=rank,
            max_memory=verb.read_bytes(max_memory),
            data=data,
            say=say,
        )
    probe = None if rows is None else _split(rows, "train", 0, "rows")
    if into is not None:
        of_arrival = {"name": name, "train": train, "test": test, "dev": dev, "options": options}
        for key, value in {**of_arrival, "search": search or None}.items():
            if value is not None:
                raise PerdureError(
                    f"{key}: is for a checkpoint that arrives in a lineage, and with into a new "
                    f"model is made; leave {key} out"
                )
        return verb.merge_many(
            names,
            into=into,
            base=base,
            rule_name=rule,
            values=dict(keywords or {}),
            weights=weights,
            statistics=statistics,
            rows=probe,
            preset_name=preset,
            vocabulary=vocabulary,
            rank=rank,
            full=full,
            dtype=dtype,
            max_memory=verb.read_bytes(max_memory),
            after=after,
            say=say,
        )
    folder, checkpoint = verb.lineage_and_checkpoint(names)
    if preset is not None:
        raise PerdureError(f"{preset}: makes a new model; give its folder with into")
    of_stage = {
        "base": ("base", base),
        "dtype": ("data type", dtype),
        "full": ("form", full or None),
    }
    for key, (what, value) in of_stage.items():
        if value is not None:
            raise PerdureError(
                f"{key}: a stage has the {what} of its lineage; leave {key} out, or give the "
                "folder of a new model with into"
            )
    if vocabulary == "union":
        raise PerdureError(
            "vocabulary union: a lineage keeps the vocabulary of its base; give base, or merge "
            "into a new model with into"
        )
    task_name = name or Path(checkpoint).absolute().name
    task = _trained_elsewhere(folder, task_name, train, test, metric, options, dev=dev)
    from perdure.verbs import merge_arrival as arrival

    entry = arrival.merge_arrival(
        folder,
        checkpoint,
        task,
        rule_name=rule,
        values=dict(keywords or {}),
        weights=weights,
        statistics=statistics,
        rows=probe,
        rank=rank,
        max_memory=verb.read_bytes(max_memory),
        after=after,
        vocabulary=vocabulary,
        search=search,
        data=data,
        say=say,
    )
    if verb.is_lineage(checkpoint):
        say(
            f"note: the newest stage of {checkpoint} was merged into the lineage {folder}, which "
            f"`perdure revert {folder} --to {entry['parent']}` undoes; --into FOLDER merges the "
            "two into a new model"
        )
    return entry


@checked
@leaves_no_trace
@processes.in_python()
def run(
    config: Config | str | Path | dict[str, Any],
    data: str | Path | None = None,
    *,
    callbacks: Sequence["TrainerCallback"] = (),
    say: Say = silent,
    **settings: Any,
) -> Lineage:
    """Learn a stream of tasks one after another. After an interruption, repeat the command.

        perdure.run("examples/quickstart.yaml", method="recurrent_kif").matrix()

    A YAML that names no lineage gets `<its name>/<the method's name>`.

    With mode `per_task` and `merge`, each task is learned from the base in a lineage of its own
    (`<lineage>-experts`), and its stage is merged into the lineage, which is returned.

    Args:
        config: The settings of the run.
        data: Folder with the benchmarks' rows. Default: the environment variable PERDURE_DATA.
        callbacks: Callbacks of every task's Trainer.
        say: Called with each note and each warning.
        **settings: Settings that override the YAML's.

    Returns:
        The lineage, with all tasks learned.

    Raises:
        PerdureError: as for `init` and `learn`, or the settings differ from those of the existing
            lineage.
        RefusedError: a stage lost more than the gate allows. The tasks after it are not learned.
    """
    config = run_config(config, data, settings)
    if config.merge is not None:
        from perdure.verbs.run_merged import run_merged

        return run_merged(config, callbacks=callbacks, say=say)
    from perdure.verbs import run as verb

    return verb.run(config, callbacks=callbacks, say=say)


@checked
@leaves_no_trace
def dry_run(
    config: Config | str | Path | dict[str, Any],
    data: str | Path | None = None,
    *,
    say: Say = silent,
    **settings: Any,
) -> dict[str, Any]:
    """Report what `run` would do and cost: rows, tokens, steps, seconds, memory, disk.

    Nothing is written. On the command line this is `perdure run --dry-run`.

    Args:
        config: The settings of the run.
        data: Folder with the benchmarks' rows. Default: the environment variable PERDURE_DATA.
        say: Called with each note and each warning.
        **settings: Settings that override the YAML's.

    Returns:
        The findings, with a mapping for each task in `tasks`; `--json` prints the same.

    Raises:
        PerdureError: something would stop the run, at its start or later.
    """
    config = run_config(config, data, settings)
    from perdure.verbs import dry_run as verb

    return verb.dry_run(config, say)


def run_config(
    config: Config | str | Path | dict[str, Any],
    data: str | Path | None = None,
    settings: list[str] | dict[str, Any] | None = None,
) -> Config:
    """Return the settings of a run, with the folder of its lineage filled in."""
    source, config = config, _with_settings(config, settings)
    if config.merge is not None:
        from perdure.prepare.merged import check_merge

        check_merge(config)
    if not config.lineage and isinstance(source, str | Path):
        name = method_name(config.method, config.mode)
        if config.merge is not None:
            name = f"{name}_{merge_rule(config.merge)}"
        config.lineage = str(Path(Path(source).stem) / name)
    config.data = str(data) if data else config.data
    return config


def _with_settings(
    config: Config | str | Path | dict[str, Any], settings: list[str] | dict[str, Any] | None
) -> Config:
    """Return a new Config with the settings laid over it; the caller's own is not changed.

    A task's metric may be a function, which is replaced by its name.
    """
    if isinstance(config, dict) and isinstance(config.get("tasks"), list):
        tasks = [
            {**task, "metric": metric_name(task["metric"])}
            if isinstance(task, dict) and callable(task.get("metric"))
            else task
            for task in config["tasks"]
        ]
        config = {**config, "tasks": tasks}
    if isinstance(config, Config):
        return load_config(config.to_dict(), settings, "the Config")
    return load_config(config, settings)


@checked
@leaves_no_trace
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
    """Run every method on the same task orders and seeds, and compare what they keep and what they
    cost. A cell that fails does not stop the others. After an interruption, repeat the command to
    continue.

        comparison = perdure.compare("grid.yaml", jobs=2)
        comparison["lines"][1]["to_baseline"]["overall"]["differs"]

    Each cell is a lineage of its own. If a cell fails, its `error` says why. If the YAML names no
    lineage, the folder has the name of the YAML.

    Args:
        grid: The settings of a run, and a `grid:` of values to vary.
        jobs: How many cells run at the same time.
        ray: Run the cells on the Ray cluster at this address; `local` starts one.
        data: Folder with the benchmarks' rows. Default: the environment variable PERDURE_DATA.
        dry_run: Report what it would do and cost, without writing anything.
        say: Called with each note and each warning.
        **settings: Settings that override the YAML's.

    Returns:
        What `compare.json` and `costs.json` say, and the folder: `lines` with the numbers of each
        line of the grid, `cells` with those of each cell, `baseline` and `costs`; or the findings
        of a dry run.

    Raises:
        PerdureError: no cell could run with the settings, the rows or the base, or another process
            is writing to the folder.
    """
    from perdure.comparison.grid import read_grid

    lines = read_grid(grid, settings | ({"data": str(data)} if data else {}))
    if dry_run:
        from perdure.verbs import compare_dry_run

        return compare_dry_run.dry_run(lines, jobs=jobs, say=say)
    from perdure.comparison.cluster import starter
    from perdure.verbs import compare as verb

    return verb.compare(lines, jobs=jobs, say=say, begin=starter(ray) if ray else None)


@checked
@leaves_no_trace
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
    """Score a stage on the tasks learned so far. Nothing is changed.

        perdure.evaluate("my-model", stage=1)["reviews"]["score"]

    Args:
        folder: The lineage.
        stage: The number of the stage; 0 is the base. Default: the newest.
        tasks: Score only these tasks. Default: all.
        mode: How the model answers. Default: the lineage's setting.
        predictions: Write the answer to every test row to this JSON lines file: `task`, `row`
            (from 1), the row itself, `prediction` and `score`.
        data: Folder with the benchmarks' rows. Default: the environment variable PERDURE_DATA.
        say: Called with each note and each warning.

    Returns:
        A mapping from each task to its score and how it was scored.

    Raises:
        PerdureError: the stage or a task does not exist, the tasks do not allow the mode, or
            `predictions` cannot be written.
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


@checked
@leaves_no_trace
def probe(
    folder: str | Path,
    rows: Rows,
    learned: int | None = None,
    stages: Sequence[int] = (),
    *,
    say: Say = silent,
) -> dict[str, Any]:
    """Probe the stages with rows outside the tasks: loss, forgetting, recognition and recall.
    Nothing is changed.

        perdure.probe("my-model", "facts.jsonl", learned=1)["stages"][-1]["recall"]

    `perdure.measure.probes` defines the numbers. A number that cannot be computed is None.

    Args:
        folder: The lineage.
        rows: The rows of the probe. A row can have a `foil`: a wrong completion that was never
            taught.
        learned: The stage that learned the rows, to measure how much is retained. This stage and
            the one before it are probed as well.
        stages: Probe only these stages. Default: all active stages.
        say: Called with each note and each warning.

    Returns:
        `stages`, a mapping with the numbers of each stage that was probed, and what was asked.

    Raises:
        PerdureError: a stage does not exist or its weights were removed, or the rows cannot be used
            as a probe.
    """
    from perdure.verbs import probe as verb

    return verb.probe(folder, rows, learned=learned, stages=stages, say=say)


@checked
@leaves_no_trace
def check(
    model: str | Path,
    against: str | Path | int | None = None,
    stage: int | None = None,
    rows: Rows | None = None,
    limit: int | None = None,
    system: str | None = None,
    max_new_tokens: int | None = None,
    lm_eval: str | Sequence[str] | None = None,
    lm_eval_path: str | Path | None = None,
    lm_eval_limit: int | None = None,
    *,
    say: Say = silent,
) -> dict[str, Any]:
    """Check what a model has lost of the general ability of the model that it was trained from.
    Nothing is changed.

        perdure.check("my-model", stage=2)["lost"]
        perdure.check("outputs/merged", against="Qwen/Qwen3-0.6B")["flips"]

    Both models answer the same rows, greedily and in the base's chat template if it has one, and
    each answer is judged by checks. General ability is lost if the checks that only the other model
    passes are more than chance explains (one-sided exact sign test, p < 0.05) and at least 3 of 100
    checks net. KL divergence and the form of the answers are reported, but decide nothing. With
    tasks of lm-eval, both models are asked these too, and each task is judged by the same rule,
    with p < 0.05 divided by the number of tasks.

    Args:
        model: A lineage, a model's folder or its name on the hub, or the folder of a PEFT adapter.
        against: The model to compare with: for a lineage the number of a stage (default: 0, the
            base), for an adapter its base by default.
        stage: The number of the lineage's stage to check. Default: the newest.
        rows: Your own rows with checks. Default: the lineage's `guard.rows`, or the bundled ones.
        limit: The most rows to ask, a fixed sample with as many of each skill as possible. Default:
            the lineage's `guard.limit`, or all.
        system: A system prompt before each row. Default: the lineage's `guard.system`, or none.
        max_new_tokens: The largest number of tokens of an answer. Default: the lineage's, or 48.
        lm_eval: Tasks of lm-eval to run as well, with commas between them: names of tasks, groups
            or tags, or YAML files. Default: those of the lineage's `guard.lm_eval`, or none.
        lm_eval_path: A folder with the YAML files of your own tasks.
        lm_eval_limit: The most documents of each of lm-eval's tasks. Default: the lineage's, or
            all.
        say: Called with each note and each warning.

    Returns:
        The numbers and the rows that flipped as plain JSON; `verdict` has them in words, and
        `lm_eval` the numbers of lm-eval's tasks.

    Raises:
        PerdureError: a model or a stage does not exist or is an encoder, there is nothing to
            compare with, the rows are not rows with checks, or a task of lm-eval cannot be run.
    """
    from perdure.verbs import check as verb

    return verb.check(
        model,
        against=against,
        stage=stage,
        rows=rows,
        limit=limit,
        system=system,
        max_new_tokens=max_new_tokens,
        lm_eval=lm_eval,
        lm_eval_path=lm_eval_path,
        lm_eval_limit=lm_eval_limit,
        say=say,
    )


@checked
@leaves_no_trace
def answer(
    folder: str | Path,
    prompts: str | Sequence[str] = (),
    stage: int | None = None,
    options: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    chat: bool = False,
    plain: bool = False,
    system: str | None = None,
    messages: Conversations | None = None,
    *,
    say: Say = silent,
) -> list[str]:
    """Answer a prompt with a stage, by generation or by a choice among options. Nothing is changed.

        perdure.answer("my-model", "Great pasta, slow service. Sentiment:", stage=1)
        perdure.answer("my-chat", messages=[{"role": "user", "content": "Hello!"}])

    On the command line this is `perdure try`. A generative model decodes greedily, or chooses among
    `options`. An encoder chooses among `options`, or else among all labels that it has learned.

    If the base has a chat template, a prompt is written with it as a user's message, provided that
    the stage has learned conversations (rows with messages), or nothing has been learned yet.
    Otherwise the model reads the prompt as plain text. A note says which of the two was done.

    Args:
        folder: The lineage.
        prompts: The prompt, or several prompts.
        stage: The number of the stage; 0 is the base. Default: the newest.
        options: The answers to choose from.
        max_new_tokens: The largest number of tokens to generate. Default: the lineage's
            `max_completion_length`.
        chat: Use the chat template, even if the stage was trained on plain text.
        plain: Use the prompt as plain text, even if the stage was trained in the chat template.
        system: A system prompt before each prompt or conversation.
        messages: A conversation to answer, a list of messages that ends with the user's; or rows
            with such `messages`.
        say: Called with each note and each warning.

    Returns:
        The answers, one for each prompt or conversation.

    Raises:
        PerdureError: the stage does not exist, a prompt is empty, a conversation does not end with
            a user's message, there is no chat template for it, or an encoder has not learned any
            label.
    """
    from perdure.verbs import answer as verb

    return verb.answer(
        folder,
        [prompts] if isinstance(prompts, str) else prompts,
        stage=stage,
        options=options or (),
        max_new_tokens=max_new_tokens,
        chat=chat,
        plain=plain,
        system=system,
        messages=messages,
        say=say,
    )


@checked
def chat(
    folder: str | Path,
    stage: int | None = None,
    system: str | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    plain: bool = False,
    *,
    say: Say = silent,
) -> "Chat":
    """Talk to the stages of a lineage, in the base's chat template. Nothing is changed.

        conversation = perdure.chat("my-chat", system="Answer in one sentence.")
        conversation.ask("What is the capital of France?")
        conversation.again(stage=0)  # what the base answers
        conversation.switch(0)  # the base answers from now on

    The whole conversation is in the prompt of each answer. If the base has no chat template, each
    question is asked alone, as plain text.

    Args:
        folder: The lineage.
        stage: The number of the stage that answers; 0 is the base. Default: the newest.
        system: A system prompt before the conversation.
        max_new_tokens: The largest number of tokens to generate. Default: the lineage's
            `max_completion_length`.
        temperature: 0 decodes greedily. Otherwise tokens are sampled, the more freely the higher it
            is.
        plain: Ask each question alone, as plain text, even if the base has a chat template.
        say: Called with each note and each warning.

    Returns:
        The conversation (`perdure.verbs.chat.Chat`).

    Raises:
        PerdureError: the stage does not exist or its weights were removed, the base is an encoder,
            or a system prompt has no chat template.
    """
    from perdure.verbs.chat import Chat

    return Chat(
        folder,
        stage=stage,
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        plain=plain,
        say=say,
    )


@checked
def log(folder: str | Path) -> list[dict[str, Any]]:
    """List the history of a lineage, newest last, including reverted stages.

        [(entry["stage"], entry["task"]) for entry in perdure.log("my-model") if entry["active"]]

    Args:
        folder: The lineage.

    Returns:
        A mapping for each line of the ledger. `active` says whether the stage is part of the
        current history; lines of `set` and `rebase` always are, because a `revert` leaves them.
        `method` is the name of the method and its preset, and `method_in_words` has the other
        keywords as well.
    """
    from perdure.verbs import log as verb

    return verb.log(folder)


@checked
def show(
    folder: str | Path,
    stage: int | None = None,
    flips: bool = False,
    data: str | Path | None = None,
    *,
    say: Say = silent,
) -> dict[str, Any]:
    """Show a stage: what it learned, gained and lost, its settings, and how to load it.

    Args:
        folder: The lineage.
        stage: The number of the stage; 0 is the base. Default: the newest.
        flips: Also list the test rows whose score changed, with the answers before and after.
        data: Folder with the benchmarks' rows. Default: the environment variable PERDURE_DATA.
        say: Called with each warning, such as that the test rows of a task are gone.

    Returns:
        A mapping with everything that the lineage records about the stage. In it `rehearsed` says
        how many rows of earlier tasks were rehearsed and how often, `active` whether the stage is
        part of the current history, and `line_of` which stages lead from the base to it.

    Raises:
        PerdureError: the stage does not exist.
    """
    from perdure.verbs import show as verb

    return verb.show(folder, stage, flips=flips, data=data, say=say)


@checked
@leaves_no_trace
def report(
    folders: str | Path | Sequence[str | Path], out: str | Path = "report.html"
) -> "tuple[list[Run], list[Path]]":
    """Write a report of lineages: what was learned and forgotten, the costs, how to repeat it.

        perdure.report("quickstart")
        perdure.report(["runs/replay", "runs/recurrent_kif"], out="both.html")

    Args:
        folders: Lineages, or folders that contain lineages.
        out: The HTML page. Its numbers are also written as Markdown (.md) and CSV (.csv).

    Returns:
        The lineages that were read, and the files that were written.

    Raises:
        PerdureError: a folder has no lineage, or `out` exists and is not a report.
    """
    from perdure.reporting.making import report as make

    chosen = [folders] if isinstance(folders, str | Path) else folders
    if not chosen:
        raise PerdureError("report: no folder is given; name a lineage, or a folder with lineages")
    return make(chosen, out)


@checked
def configure(
    folder: str | Path,
    config: Config | str | Path | dict[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any] | None:
    """Change settings of a lineage, from its next stage on.

        perdure.configure("my-model", method=["replay", "kl_base"])
        perdure.configure("my-model", **{"training.learning_rate": 1e-4})

    On the command line this is `perdure set`. It appends a line to the ledger, which decides, and
    rewrites `lineage.yaml`, which shows the settings. A stage keeps those that it was learned with,
    and `revert` leaves the newest settings in force. Once there are stages, the settings that all
    of them share cannot change: base and revision, mode, merge, seed, adapter (but for
    `lora_dropout`), quantization, rows, instruction, the tasks learned, and `scoring.mode`.

    Args:
        folder: The lineage.
        config: A YAML with all the settings, as for `perdure run`, instead of single ones.
        **settings: The settings to change.

    Returns:
        The new line of the ledger, or None if the lineage has these settings already.

    Raises:
        PerdureError: a setting is wrong or cannot change any more.
    """
    from perdure.verbs import configure as verb

    return verb.configure(folder, config or {}, settings)


@checked
def revert(folder: str | Path, to: int | None = None) -> dict[str, Any]:
    """Go back to an earlier stage. Nothing is deleted, and reverting to a later stage also works.

    This appends a line to the ledger. The stages after `to` stay on disk but are inactive: their
    tasks are no longer scored, and their remembered rows are no longer rehearsed. The settings stay
    as they are, even if they were changed after `to`.

    Args:
        folder: The lineage.
        to: The stage to go back to; 0 is the base. Default: the stage before the newest.

    Returns:
        The new line of the ledger.

    Raises:
        PerdureError: the stage does not exist, is already the newest, or its weights were removed.
    """
    from perdure.verbs import revert as verb

    return verb.revert(folder, to)


@checked
def verify(folder: str | Path) -> list[str]:
    """Check every hash of a lineage: the ledger, the stages' files, the base. Nothing is changed.

    Args:
        folder: The lineage.

    Returns:
        One line for each difference from the ledger; an empty list if there is none.

    Raises:
        PerdureError: the folder is not a lineage, or the ledger's hash chain is broken, so that its
            lines cannot be trusted.
    """
    from perdure.verbs import verify as verb

    return verb.verify(folder)


@checked
@leaves_no_trace
def repair(
    folder: str | Path,
    stage: int | None = None,
    data: str | Path | None = None,
    *,
    say: Say = silent,
) -> dict[str, Any]:
    """Restore what can be restored of a damaged lineage, and report what cannot.

        perdure.repair("my-model")
        perdure.repair("my-model", stage=2)  # also learn stage 2 again, whose weights were dropped

    The newest line of the ledger is restored from `newest.json` and the reverse, and `lineage.yaml`
    from the ledger. One flipped bit is restored in a line of the ledger and in a small file of a
    stage. A stage is learned again if its rows are still in their files, and its files are taken
    only if they have the hashes of the ledger. If a stage of the active line cannot be restored,
    the lineage goes back to the one before it, as with `revert`. Nothing is lost by it: a file that
    is replaced without a known hash is put aside.

    Args:
        folder: The lineage.
        stage: Also restore this stage, whose weights were dropped, and the dropped stages that it
            needs for it.
        data: Folder with the benchmarks' rows. Default: the environment variable PERDURE_DATA.
        say: Called with each line of a training.

    Returns:
        `restored` and `lost`, lists of lines, and the number of the newest `stage`.

    Raises:
        PerdureError: the folder is not a lineage, another process is writing to it, its ledger
            cannot be restored, or there is no such stage.
    """
    from perdure.verbs import repair as verb

    return verb.repair(folder, stage, data, say)


@checked
@leaves_no_trace
def compact(
    folder: str | Path,
    stages: Sequence[int] = (),
    dry_run: bool = False,
    data: str | Path | None = None,
) -> dict[str, Any]:
    """Delete the weights of earlier stages that can be learned again to the same bytes.

        perdure.compact("my-model")
        perdure.compact("my-model", stages=[1, 2])  # these, even if they cannot be learned again

    Weights and method state are deleted; scores, answers, remembered rows and the ledger stay, and
    a line of the ledger says what was dropped. A stage is dropped only if this machine can learn it
    again: the rows that it was learned from are in their files with their hashes, the base, the
    versions of the libraries and the machine are those recorded, and the stage that it began with
    is there or can be learned again as well. The newest stage always stays, and the one before it,
    to which `revert` goes back, stays unless it is named. A stage within whose adapter those of
    earlier ones are stored (`olora`, `inflora`) stays unless these are named with it. `perdure
    repair FOLDER --stage N` learns a dropped stage again.

    Args:
        folder: The lineage.
        stages: Drop these stages, also those that cannot be learned again. Default: all that can.
        dry_run: Only say what would be dropped.
        data: Folder with the benchmarks' rows. Default: the environment variable PERDURE_DATA.

    Returns:
        `bytes`, the size of what was deleted; the stages that were `dropped` and `kept`, each with
        its `stage`, `task`, `bytes` and the `reason` why it is kept or cannot be learned again; and
        `notes`, a list of lines.

    Raises:
        PerdureError: the folder is not a lineage, another process is writing to it, or a stage that
            is named does not exist or is the newest.
    """
    from perdure.verbs import compact as verb

    return verb.compact(folder, stages, dry_run, data)


@checked
@leaves_no_trace
def export(
    folder: str | Path,
    out: str | Path,
    stage: int | None = None,
    dtype: Dtype | None = None,
    adapter: bool = False,
) -> Path:
    """Write a stage as one plain model with the adapter merged in, for `from_pretrained`.

    W' = W + dW, where dW is the adapter's update. The sum is computed in fp32 and rounded once, to
    `dtype`. The tokenizer and a model card are written next to the weights, and for an encoder
    `head.safetensors`; the remembered rows are not. If the base was quantised for learning, the
    export uses the unquantised base.

    With `adapter`, the adapter is not merged: `out` has the files that PEFT's `save_pretrained`
    writes, a card, and an encoder's head. The folder of a stage has these as well, except for
    earlier stages of `olora` and `inflora`, whose adapters are stored within the newest one.

    Args:
        folder: The lineage.
        out: A new folder for the model.
        stage: The number of the stage; 0 is the base. Default: the newest.
        dtype: The data type of the weights. Default: that of the base.
        adapter: Write the adapter on its own, without merging it.

    Returns:
        The folder of the model.

    Raises:
        PerdureError: the stage does not exist, `out` is not empty, the adapter cannot be merged,
            the model's outputs change when it is saved and loaded, or there is no `adapter`.
    """
    from perdure.verbs import export as verb

    if adapter and dtype is not None:
        raise PerdureError("dtype: an adapter is written as it is; leave out --dtype or --adapter")
    if adapter:
        return verb.export_adapter(folder, out, stage=stage)
    return verb.export(folder, out, stage=stage, dtype=dtype)


@checked
@leaves_no_trace
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
        repository: The name of the repository, which is created if it does not exist.
        stage: The number of the stage. Default: the newest.
        merged: Upload a single merged model, as `perdure export` writes it.
        private: If the repository is created, make it private.

    Returns:
        The address of the repository.

    Raises:
        PerdureError: the stage does not exist, its weights were removed, the hub does not accept
            the name, or the upload fails (no token, no write access, no connection).
    """
    from perdure.verbs import push as verb

    return verb.push(folder, repository, stage=stage, merged=merged, private=private)


@checked
@leaves_no_trace
def rebase(folder: str | Path, base: str, revision: str | None = None) -> dict[str, Any]:
    """Record a new location of the base. Its files must be those that the lineage was made with.

    The files are compared by their sha256, because a stage on other weights would give wrong
    answers without an error.

    Args:
        folder: The lineage.
        base: The base's new folder or name.
        revision: The commit, if the base is on the hub.

    Returns:
        The new line of the ledger.

    Raises:
        PerdureError: there is no base at this location, or its files differ.
    """
    from perdure.verbs import rebase as verb

    return verb.rebase(folder, base, revision)


@checked
def methods(name: str | None = None, recommend: bool = False) -> list[dict[str, Any]]:
    """List the methods, or show one: what it does, its keywords, its presets.

    Args:
        name: Show only this method, with all its details.
        recommend: Say instead what to take for which model and data, with measured numbers.

    Returns:
        A mapping for each method. The methods themselves are in the package `perdure.methods`.
        With `recommend`, a mapping for each recommendation: the `kind` of model, `when`, what to
        `take`, the `number` that decides, `because` (the numbers beside it) and `files`.

    Raises:
        PerdureError: there is no method of that name, or a name is given with `recommend`.
    """
    from perdure.verbs import methods as verb

    return verb.recommended(name) if recommend else verb.methods(name)


@checked
@leaves_no_trace
def pack(
    checkpoint: str | Path,
    out: str | Path,
    base: str | None = None,
    codec: Codec = "sparse",
    energy: float = 0.99,
    *,
    say: Say = silent,
) -> dict[str, Any]:
    """Store a checkpoint as its difference from its base, in a folder that `merge` takes.

        perdure.pack("sft", "sft-pack", base="Qwen/Qwen3-0.6B")
        perdure.merge(["sft-pack", "code"], "ties", base="Qwen/Qwen3-0.6B", into="merged")

    What is the base's is not stored. With `sparse`, the elements that differ are stored with their
    places, where that is smaller than the tensor; in 16 bits, a training with a small rate changes
    few of them. With `raw`, each tensor that differs is stored. Both restore the checkpoint bit by
    bit. With `lowrank`, the change of a matrix is stored as the fewest directions that keep the
    share `energy` of its sum of squares, in fp32, where that is smaller; it takes a singular value
    decomposition of each, and everything else is stored as with `sparse`.

    Args:
        checkpoint: The folder of a whole model, a name on the hub that is in its cache, or a
            lineage with whole weights, of which the newest stage is taken.
        out: A new folder for pack.safetensors and pack.json, which has the hashes of the base's and
            the checkpoint's files.
        base: The model from which it was trained.
        codec: How changes are stored.
        energy: With `lowrank`, the share of the sum of squares that is kept of each matrix.
        say: Called with each note.

    Returns:
        What pack.json says but for the list of tensors, how many have which codec, and the sizes.

    Raises:
        PerdureError: the checkpoint is no whole model of the base, or is damaged.
    """
    from perdure.verbs import pack as verb

    return verb.pack(str(checkpoint), out, base_name=base, codec=codec, energy=energy, say=say)


@checked
@leaves_no_trace
def unpack(
    folder: str | Path, out: str | Path, base: str | None = None, *, say: Say = silent
) -> dict[str, Any]:
    """Restore the checkpoint of a pack as a plain model, with the base's config and tokenizer.

    The base is only read. To take a pack away again, use the base: nothing is subtracted.

    Args:
        folder: The pack.
        out: A new folder for the model.
        base: The base, whose files must be those with which it was packed. Default: the one that
            the pack names.
        say: Called with each note.

    Returns:
        The folder of the model, whether its weights are bit by bit those that were packed, and the
        hashes of the checkpoint.

    Raises:
        PerdureError: there is no pack, it is damaged, or the base is another one.
    """
    from perdure.verbs import pack as verb

    return verb.unpack(str(folder), out, base_name=base, say=say)


@checked
@leaves_no_trace
def statistics(
    checkpoint: str | Path,
    rows: TaskRows,
    out: str | Path,
    rule: str = "fisher",
    limit: int = 256,
    max_length: int | None = None,
    seed: int = 0,
    *,
    say: Say = silent,
) -> dict[str, Any]:
    """Measure a checkpoint on rows of its task, for the rules of `merge` that weigh by it.

        perdure.statistics("sft", "reviews.jsonl", "sft-fisher")
        perdure.merge(["sft", "code"], "fisher", base="Qwen/Qwen3-0.6B", into="merged",
                      statistics=["sft-fisher", "code-fisher"])

    For `fisher`, the diagonal of the Fisher information of all weights is measured, one row at a
    time; it takes the memory of the model in fp32 and of three gradients. For `regmean`, the mean
    of x x^T of the inputs x of each linear layer is measured, of d x d numbers for d inputs, all in
    memory. The model is computed in fp32. Merging itself reads what was measured tensor by tensor.
    An encoder is measured with its head, among all labels that the head has.

    Args:
        checkpoint: The folder of a model or of a LoRA adapter, a name on the hub that is in its
            cache, or a lineage, of which the newest stage is taken.
        rows: Rows as it was trained on: a file, or hub:OWNER/NAME[:SPLIT].
        out: A new folder for statistics.safetensors and statistics.json, which has the hashes of
            the checkpoint's files.
        rule: The rule that the statistics are for.
        limit: The most rows, of which as many are drawn.
        max_length: The most tokens of a row. Default: 512, or the positions of the model.
        seed: The seed of the draws.
        say: Called with each warning about the files.

    Returns:
        What statistics.json says, and the folder.

    Raises:
        PerdureError: the checkpoint does not load, is an encoder without a head, or a row does not
            fit.
    """
    from perdure.verbs import statistics as verb

    split = _split(rows, "train", seed, "rows")
    return verb.statistics(
        str(checkpoint),
        split,
        out=out,
        rule_name=rule,
        limit=limit,
        max_length=max_length,
        seed=seed,
        say=say,
    )


@checked
def rules(name: str | None = None) -> list[dict[str, Any]]:
    """List the rules of `perdure merge` and the treatments after them, or show one of them.

    Args:
        name: Show only this rule or treatment, with all its details.

    Returns:
        A mapping for each. The rules are in the package `perdure.merging.rules`, the treatments in
        `perdure.merging.after`.

    Raises:
        PerdureError: there is no rule and no treatment of that name.
    """
    from perdure.verbs import rules as verb

    return verb.rules(name)


def _trained_elsewhere(
    folder: str | Path,
    name: str,
    train: TaskRows | None,
    test: TaskRows | None,
    metric: str | Metric,
    options: Sequence[str] | None,
    dev: TaskRows | None = None,
) -> Task:
    """Return the task of a checkpoint that was trained elsewhere, which may have no rows."""
    seed = Lineage(folder).config.seed
    splits = {
        split: _split(rows, split, seed, f"{name} {split}")
        for split, rows in (("train", train), ("dev", dev), ("test", test))
        if rows is not None
    }
    return Task(
        name,
        train=splits.get("train", Split(())),
        dev=splits.get("dev"),
        test=splits.get("test"),
        metric=metric_name(metric),
        options=tuple(options) if options else None,
    )


def _split(rows: TaskRows, split: str, seed: int, where: str) -> Split:
    if isinstance(rows, str | Path | Mapping):
        return file_split(rows, None, seed, split)
    notes = Notes()
    if not rows:
        raise PerdureError(f"{where}: the list holds no rows")
    given = [as_row(row, f"{where}, row {n}", notes) for n, row in enumerate(rows, 1)]
    return Split(tuple(given), notes=notes.lines(where))
