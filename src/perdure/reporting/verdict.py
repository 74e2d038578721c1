"""A verdict on a stage in words."""

from typing import Any


def words(judged: dict[str, Any], stage: int) -> list[tuple[str, bool]]:
    """Return the lines of a verdict, each with whether it tells of a loss.

    Args:
        judged: the verdict, as `Lineage.verdict` returns it.
        stage: the number of the stage.
    """
    learned = judged["learned"]
    head = f"stage {stage}, {judged['task']}: "
    lines = [(head + ("not measured" if learned is None else _scores(learned)), False)]
    if learned is not None and learned["collapse"]:
        lines.append((f"  {judged['task']}: {learned['collapse']}", True))
    for name, change in judged["old"].items():
        collapse = f"; {change['collapse']}" if change["collapse"] else ""
        label = _label(name, change, judged)
        lines.append((f"  {label}: {name} {_scores(change)}{collapse}", label.startswith("lost")))
    if judged["unmeasured"]:
        names = ", ".join(judged["unmeasured"])
        lines.append((f"  not measured, as there are no test rows: {names}", False))
    if judged["suggestion"]:
        lines.append((f"  next: {judged['suggestion']}", False))
    return lines


def _label(name: str, change: dict[str, Any], judged: dict[str, Any]) -> str:
    if name in judged["lost"]:
        return "lost"
    if name in judged["lost_before"]:
        return "lost before"
    return "scored" if change["before"] is None else "kept"


def _scores(change: dict[str, Any]) -> str:
    """Return a change as text: `1.000 -> 0.300 (7 of 10 rows fell, 0 rose, p = 0.008)`."""
    before = "-" if change["before"] is None else f"{change['before']:.3f}"
    scores, rows = f"{before} -> {change['after']:.3f}", change["rows"]
    if change["fell"] + change["rose"] == 0:
        return f"{scores} ({rows} test row{'s' * (rows != 1)})"
    noise = "" if change["p"] >= 0.05 else f", p = {change['p']:.2g}"
    noise = ", within noise" if change["fell"] > change["rose"] and not noise else noise
    return f"{scores} ({change['fell']} of {rows} rows fell, {change['rose']} rose{noise})"
