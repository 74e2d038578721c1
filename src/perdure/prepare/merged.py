"""Runs in which the stages of mode per_task are merged, one after another: the key `merge`.

Such a run has two lineages: the experts, one stage for each task from the base, and beside it the
merged one, in which each expert arrives.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perdure import processes
from perdure.config import Config, Gate
from perdure.data.task import Task
from perdure.errors import PerdureError
from perdure.lineage.experts import experts_folder
from perdure.lineage.lineage import Lineage
from perdure.lineage.settings import differences, in_words, stored
from perdure.merging.rule import Rule
from perdure.merging.rules import keywords, make, names
from perdure.models.base import BaseInfo
from perdure.models.pins import pin
from perdure.models.targets import fitting_adapter


FORM = "a rule's name, or a mapping such as {rule: ties, density: 0.3}"
# The settings that decide the weights of experts, beside the base and the rows.
DECIDES = (
    "mode",
    "method",
    "adapter",
    "quantization",
    "training",
    "general",
    "max_length",
    "mask_history",
    "seed",
)


@dataclass(frozen=True)
class MergeSettings:
    """How the experts of a run are merged.

    Args:
        rule: the name of the rule.
        values: its keywords.
        weight: the weight of each expert, None if none was given.
        rank: the rank of the merged adapter, None for that of the experts.
        experts: the folder of a lineage that has learned the tasks in the mode per_task, whose
            stages are merged. None if the run learns them.
    """

    rule: str
    values: dict[str, Any]
    weight: float | None = None
    rank: int | None = None
    experts: str | None = None

    @property
    def learns(self) -> bool:
        """Whether the weights of experts are learned on remembered rows."""
        return self.make().learns and self.weight is None

    @property
    def gives_whole(self) -> bool:
        """Whether the merged model has whole weights, also if the experts are adapters."""
        return not self.make().linear or self.learns

    def make(self) -> Rule:
        """Return the rule.

        Raises:
            PerdureError: there is no such rule or keyword, or a value has the wrong type or range.
        """
        return make(self.rule, self.values)


def read_merge(value: Any) -> MergeSettings:
    """Read the value of the key `merge`.

    The keys of a mapping are `rule`, `weight`, `rank`, `experts`, and the rule's own keywords.

    Raises:
        PerdureError: it is of another form, or a key or a value is wrong.
    """
    if isinstance(value, str):
        value = {"rule": value}
    if not isinstance(value, dict):
        raise PerdureError(f"merge: takes {FORM}, got {value!r}")
    values = dict(value)
    rule_name = values.pop("rule", None)
    if not isinstance(rule_name, str):
        raise PerdureError(f"merge: rule is missing; give one of {', '.join(names())}")
    experts = values.pop("experts", None)
    if experts is not None and not (isinstance(experts, str) and experts):
        raise PerdureError(f"merge: experts takes the folder of a lineage, got {experts!r}")
    try:
        own = keywords(rule_name)
        weight = None if "weight" in own else _number(values.pop("weight", None), "weight")
        rank = None if "rank" in own else values.pop("rank", None)
        settings = MergeSettings(rule_name, values, weight, rank, experts)
        settings.make().check_weights([weight])
    except PerdureError as error:
        raise PerdureError(f"merge: {error}") from None
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise PerdureError(f"merge: rank must be a whole number of at least 1, got {rank!r}")
    return settings


def _number(value: Any, key: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PerdureError(f"{key} takes a number, got {value!r}")
    if not abs(value) < float("inf"):
        raise PerdureError(f"{key} must be a finite number, got {value}")
    return float(value)


def check_merge(config: Config) -> None:
    """Check the key `merge` of a run, if it is set.

    Raises:
        PerdureError: its value is wrong, or the other settings do not fit it.
    """
    if config.merge is None:
        return
    settings = read_merge(config.merge)
    if config.mode != "per_task":
        raise PerdureError(
            f"merge: merges the stages of mode per_task, and the mode is {config.mode}; set "
            "mode=per_task, or leave merge out"
        )
    if settings.rank is not None and (config.adapter is None or settings.gives_whole):
        raise PerdureError(
            f"merge: rank is that of a merged adapter, and {settings.rule} gives whole weights "
            "here; leave it out"
        )
    if settings.learns and not config.memory.ratio:
        raise PerdureError(
            f"merge: {settings.rule} learns the weight of each expert on remembered rows, and "
            "memory.ratio is 0; raise it, or give a weight"
        )
    if processes.count() > 1:
        raise PerdureError("merge: one process merges; run it without several")


def experts_of(config: Config) -> Config:
    """Return the settings of the lineage of the experts; it has neither a guard nor a gate.

    General ability is measured on what is merged, which is what is used.
    """
    experts = copy.deepcopy(config)
    folder = experts_folder(Path(config.lineage), config.merge) if config.lineage else None
    return replace(
        experts, merge=None, guard=None, gate=Gate(), lineage=str(folder) if folder else None
    )


def learned_experts(
    config: Config, tasks: Sequence[Task], info: BaseInfo
) -> list[tuple[Lineage, dict[str, Any]]]:
    """Return the stages in which a lineage of the mode per_task has learned some tasks.

    Args:
        config: the settings of the lineage (`experts_of`).
        tasks: the tasks, in any order.
        info: the base of the run.

    Raises:
        PerdureError: it was learned from another base or with other settings, or has not learned
            one of the tasks.
    """
    assert config.lineage is not None
    lineage = Lineage(config.lineage)
    if lineage.pin["files"] != pin(info.name, info.revision)["files"]:
        raise PerdureError(
            f"merge: the experts in {lineage.path} were learned from another base, "
            f"{lineage.pin['name']!r}; set base to that one, or leave experts out"
        )
    if config.adapter is not None:  # as their run has filled it in
        adapter = fitting_adapter(info.config, info.kind, config.adapter)
        config = replace(config, adapter=adapter)
    found, wanted = (
        {key: settings[key] for key in DECIDES}
        for settings in (lineage.settings, stored(config, lineage.path))
    )
    if changes := differences(found, wanted):
        raise PerdureError(
            f"merge: the experts in {lineage.path} were learned with other settings "
            f"({in_words(changes, ' instead of ')}); give those to the run, or leave experts out, "
            "so that it learns them"
        )
    by_rows = {entry["task"].get("train", {}).get("sha256"): entry for entry in lineage.stages}
    for task in tasks:
        if task.train.sha256 not in by_rows:
            names = ", ".join(entry["task"]["name"] for entry in lineage.stages) or "nothing"
            raise PerdureError(
                f"merge: {lineage.path} has not learned the rows of {task.name!r}, but {names}; "
                "learn them there, or leave experts out, so that the run learns them"
            )
    return [(lineage, by_rows[task.train.sha256]) for task in tasks]


def merged_of(config: Config) -> Config:
    """Return the settings of the lineage in which the experts arrive.

    A rule that does more than to add gives whole weights, also from adapters, and so does one that
    learns the weights of the experts.
    """
    merged = replace(copy.deepcopy(config), mode="sequential")
    if read_merge(config.merge).gives_whole:
        merged = replace(merged, adapter=None, quantization=None)
    return merged
