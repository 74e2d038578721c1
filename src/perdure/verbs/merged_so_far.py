"""What a lineage has merged before a checkpoint arrives."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import check_kept
from perdure.merging.rule import Arrived, Rule
from perdure.models.layout import MERGE_STATE


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
        first = [] if self.first is None else [first_weight(rule)]
        return [*(arrived.weight for arrived in self.history), *first]


def so_far_of(lineage: Lineage, rule: Rule, rule_line: dict[str, Any]) -> SoFar:
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
    return SoFar([], first=lineage.loadable(entry), notes=(note,))


def first_weight(rule: Rule) -> float | None:
    """Return the weight with which the newest stage is all that was merged so far."""
    return 1.0 if rule.linear else None


def history_of(arrived: Sequence[Arrived]) -> list[dict[str, float | None]]:
    return [{"weight": one.weight, "norm": one.norm} for one in arrived]


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
