"""A verdict on a stage in words."""

from typing import Any

from perdure.measure.guard.words import words as guard_words
from perdure.measure.statistics import SIGNIFICANCE
from perdure.measure.verdict import lost_now


def losses(judged: dict[str, Any]) -> list[str]:
    """Return a line for each loss of the stage itself, without what was lost before it."""
    learned = judged["learned"]
    collapse = learned["collapse"] if learned else None
    lines = [f"{judged['task']}: {collapse}"] if collapse else []
    lines += [f"lost: {_change(name, judged['old'][name])}" for name in judged["lost"]]
    general = judged["general"]
    return [*lines, guard_words(general)[0]] if lost_now(general) else lines


def words(judged: dict[str, Any], stage: int, folder: str = "FOLDER") -> list[tuple[str, bool]]:
    """Return the lines of a verdict, each with whether it tells of a loss.

    Args:
        judged: the verdict, as `Lineage.verdict` returns it.
        stage: the number of the stage.
        folder: the lineage's folder, which stands as FOLDER in a stored suggestion.
    """
    learned = judged["learned"]
    head = f"stage {stage}, {judged['task']}: "
    lines = [(head + ("not measured" if learned is None else _scores(learned)), False)]
    lines += [(f"  {line}", True) for line in losses(judged)]
    for name, change in judged["old"].items():
        if name in judged["lost_before"]:
            lines.append((f"  lost before: {_change(name, change)}", True))
        elif name not in judged["lost"]:
            label = "scored" if change["before"] is None else "kept"
            label = "collapsed" if change["collapse"] else label
            lines.append((f"  {label}: {_change(name, change)}", False))
    lines += [(f"  {line}", judged["general"].get("lost", False)) for line in _general(judged)]
    if judged["unmeasured"]:
        names = ", ".join(judged["unmeasured"])
        lines.append((f"  not measured, because there are no test rows: {names}", False))
    if judged["suggestion"]:
        lines.append((f"  next: {judged['suggestion'].replace('FOLDER', folder)}", False))
    return lines


def _general(judged: dict[str, Any]) -> list[str]:
    """Return the lines on general ability; the first is among the losses if it is lost now."""
    general = judged["general"]
    if "unmeasured" in general:
        return [f"general ability: not measured, because {general['unmeasured']}"]
    first, *others = guard_words(general)
    if general["lost_before"]:
        first += " before this stage already"
    return ["; ".join(others)] if lost_now(general) else [first, "; ".join(others)]


def _change(name: str, change: dict[str, Any]) -> str:
    collapse = f"; {change['collapse']}" if change["collapse"] else ""
    return f"{name} {_scores(change)}{collapse}"


def _scores(change: dict[str, Any]) -> str:
    """Return a change as text: `1.000 -> 0.300 (7 of 10 rows fell, 0 rose, p = 0.008)`."""
    before = "-" if change["before"] is None else f"{change['before']:.3f}"
    scores, rows, fell, rose = (
        f"{before} -> {change['after']:.3f}",
        change["rows"],
        change["fell"],
        change["rose"],
    )
    if fell + rose == 0:
        return f"{scores} ({rows} test row{'s' * (rows != 1)})"
    evidence = ""
    if change["p"] < SIGNIFICANCE:
        evidence = f", p = {change['p']:.2g}"
    elif fell > rose:
        evidence = ", within noise"
    return f"{scores} ({fell} of {rows} rows fell, {rose} rose{evidence})"
