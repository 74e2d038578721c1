"""`merge` into a lineage: one more checkpoint is folded into what was merged so far, as a stage."""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from perdure.config import Vocabulary
from perdure.data.task import Split, Task
from perdure.disk import fresh_folder
from perdure.errors import PerdureError
from perdure.lineage.files import dump, locked
from perdure.lineage.history import learned_by
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import check_kept
from perdure.merging.adapter import PREFIX
from perdure.merging.after import make as make_treatments
from perdure.merging.checkpoint import Tensors
from perdure.merging.factors import (
    DOWNS,
    UPS,
    Factors,
    added,
    balanced,
    check_only_factors,
    compressed,
    distance,
    facts_of,
    module_of,
    norms_and_cosines,
    read_sum,
    scaled,
    sums,
    tensors_of,
)
from perdure.merging.heads import Heads, factor_of, head_of
from perdure.merging.layers import Layers
from perdure.merging.model import Checkpoint, Model, open_checkpoint
from perdure.merging.observed import interference
from perdure.merging.preflight import check, check_statistics
from perdure.merging.rule import Arrived, Place, Rule
from perdure.merging.streamed import MODEL, STATE, Job, check_memory, merge_into, plan
from perdure.merging.survey import survey
from perdure.merging.treatment import Treatment, values_of
from perdure.merging.vocabulary import align
from perdure.models.base import Base
from perdure.models.checkpoints import adapter_tensors, check_base_of
from perdure.models.layout import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, MERGE_STATE
from perdure.models.stage_files import plain
from perdure.parsing import read_json
from perdure.prepare import prepare_adopt
from perdure.say import Say
from perdure.verbs.advance import Adopted, AdoptedWeights, advance
from perdure.verbs.init import check_tokenizer
from perdure.verbs.merge import (
    After,
    check_rows,
    check_treatments,
    keywords_of,
    open_rule_and_checkpoints,
    with_learned_weights,
)
from perdure.verbs.merge_search import Search, weights_to_try


# What only some arrivals have in the ledger.
SOMETIMES = ("after", "statistics", "rows", "vocabulary")
OTHERWISE = (
    "--vocabulary base aligns tokens where there are rows to align; or remove these files from the "
    "adapter's folder to use the base's"
)
LEAST_CUT = 1e-6  # the least share that is cut off and told


@dataclass(frozen=True)
class SoFar:
    """What was merged before a checkpoint arrives.

    Args:
        history: the arrivals in the state.
        state: the file of the state, None if there is none.
        first: the folder of the newest stage, if it counts as the first checkpoint.
        notes: what the user should know of it.
    """

    history: list[Arrived]
    state: Path | None = None
    first: Path | None = None
    notes: tuple[str, ...] = ()

    def weights(self, rule: Rule) -> list[float | None]:
        """Return the weights of what has arrived, with that of the newest stage if it counts."""
        first = [] if self.first is None else [_first_weight(rule)]
        return [*(arrived.weight for arrived in self.history), *first]


def merge_arrival(
    path: str | Path,
    name: str,
    task: Task,
    rule_name: str,
    values: dict[str, Any],
    weights: Sequence[float] | None,
    statistics: Sequence[str | Path] | None,
    rows: Split | None,
    rank: int | None,
    max_memory: int | None,
    after: After,
    search: bool,
    data: str | Path | None,
    say: Say,
    old: bool = True,
    full: bool = False,
    noted: Collection[str] = (),
    vocabulary: Vocabulary = "same",
) -> dict[str, Any]:
    """Merge a checkpoint into a lineage and return the stage's ledger line.

    See `perdure.api.merge`; `old` and `full` are those of `advance`, and `noted` are notes that the
    user has already.
    """
    treatments = make_treatments(after)
    rule, [arrival] = open_rule_and_checkpoints([name], rule_name, values, weights, statistics)
    check_rows(rule, [arrival.weight], rows)
    planned = Lineage(path)
    head = head_of(arrival.folder)
    if head:
        task = _with_labels(task, head, arrival.name)
    whole = planned.config.adapter is None
    if not whole:
        _check_adapter(planned, arrival, rule, treatments)
        if rows is not None:
            raise PerdureError(
                f"{path}: its stages are LoRA adapters, in which no weights are learned; give "
                "--weight, or merge into a new model with --into"
            )
    elif rank is not None:
        raise PerdureError("rank: is that of a merged adapter, and the lineage has whole weights")
    if rank is not None and rank < 1:
        raise PerdureError(f"rank: must be at least 1, got {rank}")
    stage_plan = prepare_adopt(planned, task, merges=True)
    score = _score_alone(arrival, task, planned)
    alignment_notes: list[str] = []
    if vocabulary != "same":
        base_model = Model(planned.pin["name"], planned.pin.get("revision"))
        alignment_notes = align(base_model, arrival)
    with locked(planned.path):
        lineage = Lineage(path)
        if lineage.settings != planned.settings:
            raise PerdureError(f"{path}: its settings have just changed; repeat the command")
        lineage.tidy()
        line = {
            "verb": "merge",
            "method": "merged",
            "checkpoint": arrival.hashes,
            "rule": {rule.name: keywords_of(rule)},
            "weight": arrival.weight,
            **({"after": values_of(treatments)} if treatments else {}),
            **({"statistics": arrival.statistics.sha256} if arrival.statistics else {}),
            **({"rows": rows.sha256} if rows else {}),
            **({"vocabulary": arrival.alignment.described()} if arrival.alignment else {}),
        }
        if search:
            gate = lineage.config.gate
            line["search"] = weights_to_try(rule, arrival, gate, lineage.path)
        last = lineage.stages[-1] if lineage.stages else {}
        if _is_done(last, line) and last["task"]["name"] == task.name:
            _check_same_rank(lineage, last, rank)
            _check_same_rows(lineage, last, task)
            say(f"{task.name}: already merged, as stage {lineage.head}")
            return last
        so_far = _so_far(lineage, rule, line["rule"])
        rule.check_weights([*so_far.weights(rule), arrival.weight])
        if whole:
            job = _job(lineage, rule, arrival, treatments, so_far, max_memory, vocabulary, say)
            job, searches = with_learned_weights(job, rows, max_memory, say)
        else:
            base = stage_plan.loader.at(lineage, last or None)
            _check_modules(lineage, arrival, base)
            if vocabulary == "same":
                check_tokenizer(arrival.folder, base.tokenizer, otherwise=OTHERWISE)
        if arrival.weight == 0:
            say(f"warning: weight 0: nothing of {arrival.name} is merged into the stage")
        for note in [*so_far.notes, *stage_plan.notes, *alignment_notes]:
            if note not in noted:
                say(note)

        def merged(weight: float | None, base: Base, work: Path, say: Say) -> AdoptedWeights:
            if whole:
                weighted = replace(job.checkpoints[-1], weight=weight)
                checkpoints = [*job.checkpoints[:-1], weighted]
                weighted_job = replace(job, checkpoints=checkpoints)
                weights = merged_weights(weighted_job, work)
                learned = searches
                if searches:  # `--search` may take another weight than the one it begins with
                    learned |= {"coefficients": rule.coefficients(weighted_job.arrived)}
            else:
                weighted = replace(arrival, weight=weight)
                weights = _merged_adapters(
                    rule, weighted, treatments, so_far, base, rank, work, say
                )
                learned = {}
            if base.labels is not None:
                heads = heads_of(lineage, so_far).arrive(head, factor_of(weight))
                weights = with_heads(weights, heads, base)
            # After the key of the stage, which does not depend on the place of any folder.
            place = _place(lineage, arrival)
            alone = {} if score is None else {"alone": score}
            return replace(weights, line={**weights.line, **learned, "place": place, **alone})

        def chosen(base: Base, work: Path) -> AdoptedWeights:
            if not search:
                weighted = job.checkpoints[-1] if whole else arrival
                return merged(weighted.weight, base, work, say)
            search_of_weight = Search(
                lineage, stage_plan, line["search"], merged, data=data, say=say
            )
            return search_of_weight.run(base, work)

        return advance(
            lineage,
            stage_plan,
            [task],
            data=data,
            callbacks=(),
            say=say,
            old=old,
            full=full,
            adopted=Adopted(line=line, weights=chosen),
        )


def _is_done(last: dict[str, Any], line: dict[str, Any]) -> bool:
    """Return whether the newest stage is of the same arrival, merged in the same way."""
    searched = "search" in line  # the weight is the one that was found then
    keys = [key for key in (*line, *SOMETIMES) if not (searched and key == "weight")]
    same = all(last.get(key) == line.get(key) for key in keys)
    return same and "undone" not in last and searched == ("search" in last)


def _check_same_rank(lineage: Lineage, last: dict[str, Any], rank: int | None) -> None:
    """Check that a stage that is merged already has the rank that is asked for.

    Raises:
        PerdureError: its adapter has another one.
    """
    if rank is None:
        return
    settings = read_json(lineage.folder(last) / ADAPTER_SETTINGS)
    if settings["r"] != rank:
        raise PerdureError(
            f"{lineage.path}: stage {last['stage']} has merged it at rank {settings['r']}; for "
            f"another rank, `perdure revert {lineage.path} --to {last['parent']}`, and merge again"
        )


def _check_same_rows(lineage: Lineage, last: dict[str, Any], task: Task) -> None:
    """Check that a stage that is merged already has the rows that are given.

    Raises:
        PerdureError: it was scored on other rows, or remembers others.
    """
    for split, given in (("train", task.train), ("dev", task.dev), ("test", task.test)):
        has = last["task"].get(split, {}).get("sha256")
        if given is not None and given.rows and given.sha256 != has:
            raise PerdureError(
                f"{lineage.path}: stage {last['stage']} has merged it with other {split} rows; for "
                f"these, `perdure revert {lineage.path} --to {last['parent']}`, and merge again"
            )


def _check_adapter(
    lineage: Lineage, arrival: Checkpoint, rule: Rule, after: tuple[Treatment, ...]
) -> None:
    """Check that a checkpoint can be merged into a lineage with an adapter.

    Raises:
        PerdureError: it cannot; the line says what can be.
    """
    path, kind = lineage.path, (lineage.config.adapter or {}).get("peft_type", "LORA")
    if str(kind).upper() != "LORA":
        raise PerdureError(f"{path}: its stages have {kind} adapters, and only LoRA can be merged")
    if arrival.adapter is None:
        raise PerdureError(
            f"{arrival.name}: is a whole model, but the stages of {path} have LoRA adapters; merge "
            "it in a lineage with `adapter: null`, or into a new model with --into"
        )
    if not rule.linear:
        raise PerdureError(
            f"{rule.name}: does more than to add task vectors, so that its result is no LoRA "
            f"adapter, and the stages of {path} are; use average, task_arithmetic or ema, or merge "
            "into a new model with --into"
        )
    treatment = next((one.name for one in after if not one.scales), None)
    if treatment is not None:
        raise PerdureError(
            f"{treatment}: its result is no LoRA adapter, and the stages of {path} are; merge into "
            "a new model with --into"
        )
    check_only_factors(arrival.part, arrival.name)
    check_base_of(arrival.folder, lineage.pin, str(path))


def _so_far(lineage: Lineage, rule: Rule, rule_line: dict[str, Any]) -> SoFar:
    """Return what was merged before, and check its files.

    Raises:
        PerdureError: the state was deleted or is damaged.
    """
    entry = lineage.stages[-1] if lineage.stages else lineage.origin
    if entry is None:
        return SoFar([])
    if entry.get("history") == []:  # what had arrived was taken out, so it is the base
        return SoFar([])
    check_kept(lineage, entry)
    if entry.get("rule") == rule_line:
        state = lineage.file(entry, MERGE_STATE)
        history = [Arrived(a["weight"], a["norm"]) for a in entry["history"]]
        return SoFar(history, state=state)
    lineage.check_model(entry)
    note = (
        f"note: stage {entry['stage']} was not made by {rule.name} with these keywords, and counts "
        "as the first checkpoint"
    )
    return SoFar([], first=lineage.folder(entry), notes=(note,))


def _first_weight(rule: Rule) -> float | None:
    """Return the weight with which the newest stage is all that was merged so far."""
    return 1.0 if rule.linear else None


def history_of(arrived: Sequence[Arrived]) -> list[dict[str, float | None]]:
    return [{"weight": one.weight, "norm": one.norm} for one in arrived]


def _job(
    lineage: Lineage,
    rule: Rule,
    arrival: Checkpoint,
    after: tuple[Treatment, ...],
    so_far: SoFar,
    max_memory: int | None,
    vocabulary: Vocabulary,
    say: Say,
) -> Job:
    """Check that a checkpoint can be folded into whole weights, and return what is to be done.

    Raises:
        PerdureError: it cannot, or the memory is not enough.
    """
    base = Model(lineage.pin["name"], lineage.pin.get("revision"))
    checkpoints = [arrival]
    if so_far.first is not None:
        if rule.needs is not None:
            raise PerdureError(
                f"{lineage.path}: its newest stage was not made by {rule.name} with these "
                "keywords, and there are no statistics of it; begin with a lineage without "
                "stages, or merge into a new model with --into"
            )
        checkpoints.insert(0, open_checkpoint(str(so_far.first), _first_weight(rule)))
    if arrival.alignment is not None:  # its notes are told already
        vocabulary = "base"
    notes = check(base, checkpoints, vocabulary=vocabulary)
    check_statistics(rule, base, checkpoints)
    check_treatments(after, base)
    job = Job(
        base,
        checkpoints,
        rule,
        dtype=torch.float32,
        history=so_far.history,
        state=Tensors([so_far.state]) if so_far.state else None,
        after=after,
    )
    merge_plan = plan(job, keeps_state=True)
    check_memory(merge_plan, job, max_memory)
    for line in [*notes, merge_plan.line()]:
        say(line)
    measured = survey(base, checkpoints, rule.dtype)
    names = [checkpoint.name for checkpoint in checkpoints]
    for line in measured.warnings(names, base.name):
        say(f"warning: {line}")
    return replace(job, survey=measured)


def heads_of(lineage: Lineage, so_far: SoFar) -> Heads:
    """Return what was merged of the heads of an encoder before a checkpoint arrives."""
    if not so_far.history and so_far.first is None:
        return Heads()
    newest = lineage.stages[-1]
    rows = head_of(lineage.folder(newest))
    counted = newest.get("labels", {}) if so_far.first is None else dict.fromkeys(rows, 1.0)
    return Heads({label: rows[label] for label in counted}, counted)


def with_heads(weights: AdoptedWeights, heads: Heads, base: Base) -> AdoptedWeights:
    """Return the weights of a stage with the merged head of an encoder beside them."""
    model: Any = base.model
    heads.write(weights.folder, width=model.weight.shape[1])
    return replace(weights, line={**weights.line, "labels": dict(heads.weights)})


def _with_labels(task: Task, head: Collection[str], name: str) -> Task:
    """Return the task of an encoder, which by default chooses among the labels of its head.

    Raises:
        PerdureError: the head lacks one, so that it could never be answered.
    """
    options = task.answers() or tuple(head)
    lacking = [label for label in options if label not in head]
    if lacking:
        raise PerdureError(
            f"{name}: its head has no label {lacking[0]!r} of task {task.name!r}; give rows of the "
            f"task that it has learned; it knows {', '.join(map(repr, head))}"
        )
    return replace(task, options=options)


def _place(lineage: Lineage, checkpoint: Checkpoint) -> dict[str, str]:
    """Return where a checkpoint is, as the ledger stores it: what takes it out needs it again."""
    if Path(checkpoint.name).is_dir():
        return {"path": os.path.relpath(checkpoint.folder, lineage.path)}
    return {"hub": checkpoint.name}


def _score_alone(arrival: Checkpoint, task: Task, into: Lineage) -> float | None:
    """Return the score that a stage of another lineage has on the same test rows, if it has one."""
    folder = arrival.folder.resolve()
    own = folder.parent.parent  # of stages/0001-name
    if task.test is None or not (own / "lineage.yaml").is_file():
        return None
    theirs = Lineage(own)
    stage = next((e for e in theirs.stages if theirs.folder(e).resolve() == folder), None)
    if (
        stage is None
        or "sampled" in stage
        or theirs.config.scoring.mode != into.config.scoring.mode
    ):
        return None
    for entry in theirs.standing:
        for described in learned_by(entry):
            rows = described.get("test", {}).get("sha256")
            if rows == task.test.sha256 and described["metric"] == task.metric:
                return stage["scores"].get(described["id"])
    return None


def merged_weights(job: Job, work: Path) -> AdoptedWeights:
    """Fold a checkpoint into whole weights, or take it out of them, tensor by tensor."""
    parts, is_left = work / "merging", bool(job.arrived)
    measured = merge_into(job, parts, keep_state=is_left)
    known = {key: measured[key] for key in ("rounding", "interference") if key in measured}
    return AdoptedWeights(
        parts / MODEL,
        line={"history": history_of(job.arrived), **known},
        state=parts / STATE / MERGE_STATE if is_left else None,
    )


def _merged_adapters(
    rule: Rule,
    arrival: Checkpoint,
    after: tuple[Treatment, ...],
    so_far: SoFar,
    base: Base,
    rank: int | None,
    work: Path,
    say: Say,
) -> AdoptedWeights:
    """Fold a LoRA adapter into the lineage's, and keep the sum in all of its rank as the state."""
    checkpoints = [arrival]
    if so_far.first is not None:
        first = open_checkpoint(str(so_far.first), _first_weight(rule))
        check_only_factors(first.part, first.name)
        checkpoints.insert(0, first)
    adapters = [checkpoint.part for checkpoint in checkpoints]
    with ExitStack() as stack:
        for checkpoint in checkpoints:
            stack.enter_context(checkpoint.open())
        norms, _ = norms_and_cosines(adapters)
        new = [Arrived(c.weight, norm) for c, norm in zip(checkpoints, norms, strict=True)]
        history = [*so_far.history, *new]
        coefficients = rule.coefficients(history)
        total = sums(adapters, coefficients[len(so_far.history) :])
        before = sums(adapters[:-1], [1.0] * len(adapters[:-1]))
        change = sums(adapters[-1:], [1.0])
    if so_far.state is not None:
        before = read_sum(so_far.state, ratio=1.0)
        ratio = ratio_of(rule.coefficients(so_far.history), coefficients)
        for name, factors in read_sum(so_far.state, ratio).items():
            total[name] = added(total.get(name), factors, arrival.name)
    weights = adapter_of_sum(total, history, rule, base, rank, work, say, after=after)
    if not before:
        return weights
    measured = interference(facts_of(before, change))
    return replace(weights, line={**weights.line, "interference": measured})


def adapter_of_sum(
    total: Mapping[str, Factors],
    history: Sequence[Arrived],
    rule: Rule,
    base: Base,
    rank: int | None,
    work: Path,
    say: Say,
    after: tuple[Treatment, ...] = (),
) -> AdoptedWeights:
    """Write a sum of adapters as an adapter of the lineage's form, and as the rule's state.

    Args:
        total: the sum, by module.
        history: the arrivals that are in it.
        rule: the rule.
        base: the model with an adapter of the lineage's form.
        rank: the rank; None is that of the lineage.
        work: a folder for the files.
        say: called with a note if the rank cuts something off.
        after: the treatments of the adapter, which the state does not have.
    """
    ours: Any = base.peft.peft_config["default"]
    present = adapter_tensors(base)
    cap = rank or ours.r
    scaling = ours.lora_alpha / (math.sqrt(ours.r) if ours.use_rslora else ours.r)
    dtype = next(iter(present.values())).dtype
    treated = scaled(total, after, _layers(base, after))
    merged = compressed(treated, cap, dtype, scaling=scaling, fill=present)
    if merged.discarded > LEAST_CUT:
        say(
            f"note: at rank {cap}, {merged.discarded:.2%} of the sum of squares of the merged "
            f"change is cut off, in one module {merged.worst:.2%}; the state of the stage keeps "
            "it, and --rank allows more"
        )
    folder = work / "merging"
    fresh_folder(folder)
    save_file(merged.tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    alpha = scaling * (math.sqrt(cap) if ours.use_rslora else cap)
    settings = {**plain(ours.to_dict()), "r": cap, "lora_alpha": _whole(alpha)}
    (folder / ADAPTER_SETTINGS).write_text(dump(settings), encoding="utf-8")
    line = {"history": history_of(history), "discarded": merged.discarded}
    if not history:
        return AdoptedWeights(folder, line=line)
    state = {name: balanced(factors)[0] for name, factors in total.items()}
    save_file(tensors_of(state, rule.dtype), folder / MERGE_STATE, metadata={"format": "pt"})
    if rule.can_undo:
        line["rounding"] = distance(total, read_sum(folder / MERGE_STATE, ratio=1.0))
    return AdoptedWeights(folder, line=line, state=folder / MERGE_STATE)


def _layers(base: Base, after: tuple[Treatment, ...]) -> Layers:
    """Return the numbered layers of a lineage's base.

    Raises:
        PerdureError: a treatment needs them, and there are none.
    """
    names = [name.removeprefix(PREFIX) for name, _ in base.peft.named_parameters()]
    layers = Layers(names)
    places = [Place(name, (), "matrix", layers.depth(name)) for name in names]
    for treatment in after:
        treatment.check(places)
    return layers


def _check_modules(lineage: Lineage, arrival: Checkpoint, base: Base) -> None:
    """Check that the lineage's adapter has the modules of a checkpoint, and only factors.

    Raises:
        PerdureError: it has not.
    """
    path, present = lineage.path, adapter_tensors(base)
    ours: Any = base.peft.peft_config["default"]
    if ours.rank_pattern or ours.alpha_pattern:
        raise PerdureError(
            f"{path}: its adapter has ranks or alphas of its own for some modules (rank_pattern, "
            "alpha_pattern), and a merged one has the same for all; merge into a new model with "
            "--into"
        )
    other = next((name for name in present if not name.endswith((*DOWNS, *UPS))), None)
    if other is not None:
        raise PerdureError(
            f"{path}: its adapter has {other} beside factors of LoRA; merge into a new model with "
            "--into"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in present.items()}
    modules = {module_of(name) for name in present}
    for name, module in arrival.part.modules.items():
        if name not in modules:
            raise PerdureError(
                f"{arrival.name}: changes {name}, which the adapter of {path} has not; train it "
                "with the lineage's target_modules, or merge into a new model with --into"
            )
        down, up = (arrival.part.stored[part].shape for part in (module.down, module.up))
        ends = [name for name in present if module_of(name) == module.name]
        wanted = {end.endswith(DOWNS): shapes[end] for end in ends}
        if (up[0], down[1]) != (wanted[False][0], wanted[True][1]):
            raise PerdureError(
                f"{arrival.name}: is of another shape: {name} is {up[0]} x {down[1]}, and "
                f"{wanted[False][0]} x {wanted[True][1]} in {path}"
            )


def ratio_of(before: Sequence[float], after: Sequence[float]) -> float:
    """Return by what the sum of some arrivals is multiplied when others come or go.

    Args:
        before: their coefficients before that.
        after: their coefficients after it.
    """
    if not before:
        return 0.0
    largest = max(range(len(before)), key=lambda number: abs(before[number]))
    return after[largest] / before[largest] if before[largest] else 0.0


def _whole(number: float) -> int | float:
    return int(number) if number == int(number) else number
