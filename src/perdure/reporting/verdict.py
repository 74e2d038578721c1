"""A verdict on a stage in words."""

from typing import Any

from perdure.measure.guard.lm_eval_result import short_lines, task_words
from perdure.measure.guard.loss import checks_of
from perdure.measure.guard.words import check_words
from perdure.measure.statistics import (
    SIGNIFICANCE,
    can_show_a_loss,
    could_show_a_loss,
    fell_unseen,
)
from perdure.measure.verdict import TOGETHER, lost_now


def losses(judged: dict[str, Any]) -> list[str]:
    """Return a line for each loss of the stage itself, without what was lost before it."""
    learned = judged["learned"]
    collapse = learned["collapse"] if learned else None
    lines = [f"{judged['task']}: {collapse}"] if collapse else []
    lines += [f"lost: {_change(name, judged['old'][name])}" for name in judged["lost"]]
    if not judged["lost"] and judged.get("together", {}).get("lost"):
        lines.append(f"lost: {_change(TOGETHER, judged['together'])}")
    general = judged["general"]
    if "unmeasured" not in general and lost_now(checks_of(general)):
        lines.append(check_words(general)[0])
    tasks = general.get("lm_eval", {})
    return [*lines, *(line for name, line in task_words(tasks).items() if lost_now(tasks[name]))]


def words(judged: dict[str, Any], stage: int, folder: str = "FOLDER") -> list[tuple[str, bool]]:
    """Return the lines of a verdict, each with whether it tells of a loss.

    Args:
        judged: the verdict, as `Lineage.verdict` returns it.
        stage: the number of the stage.
        folder: the lineage's folder, which stands as FOLDER in a stored suggestion.
    """
    learned = judged["learned"]
    head = f"stage {stage}, {judged['task']}: "
    if "undone" in judged:
        head += f"taken out (stage {judged['undone']}), "
    alone = f"; on its own, the checkpoint has {judged['alone']:.3f}" if "alone" in judged else ""
    lines = [(head + ("not measured" if learned is None else _scores(learned)) + alone, False)]
    lines += [(f"  {line}", True) for line in losses(judged)]
    for name, change in judged["old"].items():
        if name in judged["lost_before"]:
            lines.append((f"  lost before: {_change(name, change)}", True))
        elif name not in judged["lost"]:
            label = "scored" if change["before"] is None else "kept"
            if change["before"] is not None and change["after"] < change["before"]:
                label = "unclear"
            elif "first" in change and fell_unseen(change["first"], change):
                label = f"below its first score, {change['first']:.3f}, on too few rows to judge"
            elif change["before"] == change["after"] == 0:
                label = "nothing to lose"
            label = "collapsed" if change["collapse"] else label
            noise = change["p"] < SIGNIFICANCE and not change["collapse"]
            by_chance = ", within noise for this many tasks" if noise else ""
            lines.append((f"  {label}: {_change(name, change)}{by_chance}", False))
    if judged.get("together", {}).get("lost_before") and not judged["lost_before"]:
        lines.append((f"  lost before: {_change(TOGETHER, judged['together'])}", True))
    lines += [(f"  {line}", is_loss) for line, is_loss in _general(judged["general"])]
    if judged["unmeasured"]:
        names = ", ".join(judged["unmeasured"])
        reason = "there are no test rows, or they have changed"
        lines.append((f"  not measured, because {reason}: {names}", False))
    if judged["suggestion"]:
        lines.append((f"  next: {judged['suggestion'].replace('FOLDER', folder)}", False))
    return lines


def _general(general: dict[str, Any]) -> list[tuple[str, bool]]:
    """Return the lines on general ability that are not among the losses of the stage itself.

    Each is with whether general ability is lost, at the stage or before it.
    """
    if "unmeasured" in general:
        lines = [(f"general ability: not measured, because {general['unmeasured']}", False)]
    else:
        checks = checks_of(general)
        first, *others = check_words(general)
        if checks.get("lost_before"):
            first += " before this stage already"
        texts = ["; ".join(others)] if lost_now(checks) else [first, "; ".join(others)]
        lines = [(text, checks["lost"]) for text in texts]
    tasks = general.get("lm_eval", {})
    words_of_tasks = task_words(tasks)
    lines += [
        (words_of_tasks[name], True)
        for name, task in tasks.items()
        if task["lost"] and not lost_now(task)
    ]
    return [*lines, *((line, False) for line in short_lines(tasks))]


def _change(name: str, change: dict[str, Any]) -> str:
    collapse = f"; {change['collapse']}" if change["collapse"] else ""
    return f"{name} {_scores(change)}{collapse}"


def _scores(change: dict[str, Any]) -> str:
    """Return a change as text: `1.000 -> 0.300 (7 of 10 rows fell, 0 rose, p = 0.008)`.

    With `of`, the rows are a sample: `1.000 -> 0.300 on a sample of 10 of 400 rows (7 fell, ...)`.
    """
    before = "-" if change["before"] is None else f"{change['before']:.3f}"
    scores, rows, fell, rose = (
        f"{before} -> {change['after']:.3f}",
        change["rows"],
        change["fell"],
        change["rose"],
    )
    of = change.get("of")
    if fell + rose == 0:
        asked = f"{rows}" if of is None else f"a sample of {rows} of {of}"
        few = (
            "" if change["before"] is None or can_show_a_loss(rows) else ", too few to show a loss"
        )
        return f"{scores} ({asked} test row{'s' * ((of or rows) != 1)}{few})"
    evidence = ""
    if change["p"] < SIGNIFICANCE:
        evidence = f", p = {change['p']:.2g}"
    elif fell > rose:
        evidence = ", within noise"
        if not can_show_a_loss(rows):
            evidence = ", so few rows cannot show a loss"
        elif not could_show_a_loss(change):
            evidence = ", all that were right; so few cannot show a loss"
    if of is not None:
        return f"{scores} on a sample of {rows} of {of} rows ({fell} fell, {rose} rose{evidence})"
    return f"{scores} ({fell} of {rows} rows fell, {rose} rose{evidence})"
