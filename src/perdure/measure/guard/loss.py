"""When general ability is lost: the rule for checks and for lm-eval's tasks."""

from collections.abc import Mapping
from typing import Any

from perdure.measure.statistics import SIGNIFICANCE, sign_test


NET = 0.03  # share of all checks, or of a task's documents, that must be lost net


def is_loss(fell: int, rose: int, count: int, comparisons: int = 1) -> bool:
    """Return whether checks, or the documents of a task, are lost.

    They are if the one-sided exact sign test over those that changed has p < 0.05 / comparisons
    (Bonferroni), and if at least 3 of 100 fell net of those that rose.

    Args:
        fell: how many are worse than before.
        rose: how many are better.
        count: how many there are, with those that are the same.
        comparisons: how many tasks are judged together.
    """
    significant = sign_test(fell, rose) < SIGNIFICANCE / comparisons
    return significant and (fell - rose) / count >= NET


def with_lm_eval(general: Mapping[str, Any], tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Add the results of lm-eval's tasks to general ability, which is lost if any part is.

    It was lost before if that holds for each part that is lost. What is true of the checks alone
    stands in `checks`.
    """
    checks = {key: general[key] for key in ("lost", "lost_before") if key in general}
    checks = checks or {"lost": False}
    lost = [part for part in (checks, *tasks.values()) if part["lost"]]
    result = {**general, "checks": checks, "lm_eval": dict(tasks), "lost": bool(lost)}
    if any("lost_before" in task for task in tasks.values()):
        result["lost_before"] = bool(lost) and all(part["lost_before"] for part in lost)
    return result


def checks_of(general: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return whether the checks alone are lost, and whether they were before: `lost` and so on."""
    return general.get("checks", general)
