"""`run` with `merge`: each task is learned from the base, and its stage arrives in one model."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from perdure.config import Config
from perdure.data.task import Split, Task
from perdure.errors import PerdureError
from perdure.lineage.experts import statistics_folder
from perdure.lineage.lineage import Lineage
from perdure.merging.rule import Rule
from perdure.prepare import prepare_run
from perdure.prepare.merged import experts_of, learned_experts, merged_of, read_merge
from perdure.say import Say
from perdure.seeds import derive
from perdure.train.memory import choose
from perdure.verbs.init import begin
from perdure.verbs.merge_arrival import merge_arrival
from perdure.verbs.run import run
from perdure.verbs.statistics import statistics


LIMIT = 256  # the most rows on which an expert is measured


def run_merged(config: Config, callbacks: Sequence[TrainerCallback], say: Say) -> Lineage:
    """Learn each task from the base, merge it right after that, and return the merged lineage.

    A task is merged before the next one is learned, because without an adapter only the newest two
    stages keep their weights. The result is that of merging all of them at the end. With the
    keyword `experts` of `merge`, nothing is learned: the stages of that lineage are merged.

    Raises:
        PerdureError: as for `run`, or the experts cannot be merged.
        RefusedError: the gate refused an arrival.
    """
    assert config.lineage is not None
    path, experts, settings = Path(config.lineage), experts_of(config), read_merge(config.merge)
    if settings.experts is None:
        prepare_run(copy.deepcopy(experts))  # before anything is written
    plan = prepare_run(merged_of(config))
    experts.max_length = plan.config.max_length  # 0 was that of the base
    learned = None if settings.experts is None else learned_experts(experts, plan.tasks, plan.info)
    needs = settings.make().needs
    if not (path / "lineage.yaml").exists():
        begin(path, plan, say=say)
    total = len(plan.tasks)

    def arrive(number: int, expert: Lineage, entry: dict[str, Any], task: Task) -> None:
        """Merge the stage of the task `number`, from 1, if it is not merged yet."""
        folder = expert.folder(entry)
        merged = [e for e in Lineage(path).stages if e["verb"] == "merge" and "undone" not in e]
        if number <= len(merged):
            _check_arrived(path, merged[number - 1], expert, entry)
            return
        expert.check_model(entry)
        measured = _measured(settings.make(), expert, entry, task, config, say) if needs else None
        probe = _probe(plan.tasks[:number], config) if settings.learns else None
        is_last = number == total
        line = merge_arrival(
            path,
            str(folder),
            replace(task, training={}),
            rule_name=settings.rule,
            values=settings.values,
            weights=None if settings.weight is None else [settings.weight],
            statistics=measured,
            rows=probe,
            rank=settings.rank,
            max_memory=None,
            after=None,
            search=False,
            data=config.data,
            say=say,
            old=config.scoring.old == "each" or is_last,
            full=is_last,
            noted=plan.notes,
        )
        known = {name: score for name, score in line["scores"].items() if score is not None}
        scores = ", ".join(f"{name} {score:.3f}" for name, score in known.items())
        alone = f" (on its own {line['alone']:.3f})" if "alone" in line else ""
        say(
            f"{task.name}: merged by {settings.rule}, as stage {line['stage']}: "
            f"{scores or '-'}{alone}"
        )

    if learned is None:
        run(experts, callbacks, say, after=arrive)
    else:
        for number, ((lineage, entry), task) in enumerate(
            zip(learned, plan.tasks, strict=True), start=1
        ):
            arrive(number, lineage, entry, task)
    return Lineage(path)


def _measured(
    rule: Rule, expert: Lineage, entry: dict[str, Any], task: Task, config: Config, say: Say
) -> list[Path]:
    """Return the folder of an expert's statistics on its rows, which are measured if need be."""
    assert rule.needs is not None
    folder = statistics_folder(expert.path, rule.needs, entry["stage"])
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        say(f"{task.name}: measuring its expert for {rule.name}")
        statistics(
            str(expert.folder(entry)),
            task.train,
            folder,
            rule_name=rule.name,
            limit=LIMIT,
            max_length=config.max_length or None,
            seed=config.seed,
            say=say,
        )
    return [folder]


def _probe(tasks: Sequence[Task], config: Config) -> Split:
    """Return the rows on which the weight of the newest expert is learned: a few of each task."""
    rows = [
        row
        for task in tasks
        for row in choose(
            task.train.rows,
            config.memory.ratio,
            seed=derive(config.seed, "probe"),
            options=task.options,
            per_answer=config.memory.per_answer,
        )
    ]
    return Split(tuple(rows))


def _check_arrived(
    path: Path, arrived: dict[str, Any], expert: Lineage, entry: dict[str, Any]
) -> None:
    """Check that a stage of the merged lineage is of this expert.

    Raises:
        PerdureError: it is of another checkpoint.
    """
    names = [name for name in arrived["checkpoint"] if name in entry["files"]]
    same = names and all(arrived["checkpoint"][name] == entry["files"][name] for name in names)
    if not same:
        raise PerdureError(
            f"{path}: stage {arrived['stage']} was not merged from stage {entry['stage']} of "
            f"{expert.path}; restore both from one copy, or give a new folder with lineage=FOLDER"
        )
