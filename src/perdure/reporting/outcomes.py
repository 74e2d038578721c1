"""What became of each task at a stage, for the report: a status, the words for it, the evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from perdure.measure.guard.loss import checks_of
from perdure.measure.statistics import (
    SIGNIFICANCE,
    can_show_a_loss,
    could_show_a_loss,
    fell_unseen,
)
from perdure.measure.verdict import TOGETHER


# What the colour of a verdict shows; the words beside it say the same.
Status = Literal["lost", "noise", "kept", "unmeasured"]
ORDER: tuple[Status, ...] = ("lost", "noise", "kept", "unmeasured")
LOST, LOST_BEFORE, COLLAPSED = "lost", "lost before", "collapsed"
NOT_MEASURED, WITHIN_NOISE, BELOW = "not measured", "within noise", "below its first score"
GENERAL = "general ability"  # stands where the name of a task does


@dataclass(frozen=True)
class Outcome:
    """What a stage did to one task.

    Args:
        status: decides the colour.
        label: the status in a word or two, such as `lost before`.
        task: the name of the task.
        before: the mean score before the stage, None if it is unknown.
        after: the mean score after it.
        rows: the number of test rows.
        evidence: why it has this status, in words.
        is_general: whether it is general ability, or a part of it, and no task of the lineage.
    """

    status: Status
    label: str
    task: str
    before: float | None = None
    after: float | None = None
    rows: int | None = None
    evidence: str = ""
    is_general: bool = False

    @property
    def difference(self) -> float | None:
        if self.before is None or self.after is None:
            return None
        return self.after - self.before


@dataclass(frozen=True)
class StageVerdict:
    """The verdict on a stage.

    Args:
        stage: the number of the stage.
        task: the task that it learned.
        status: the worst status among its outcomes.
        headline: the verdict in one sentence.
        outcomes: what became of the new task, then of the old ones and of general ability, the lost
            ones first.
        suggestion: what to try next, None if nothing is wrong.
    """

    stage: int
    task: str
    status: Status
    headline: str
    outcomes: tuple[Outcome, ...]
    suggestion: str | None


@dataclass(frozen=True)
class LineageVerdict:
    """What the active stages of a lineage have lost, in one sentence, and the tasks' names."""

    status: Status
    headline: str
    lost: tuple[str, ...] = ()
    measured: int = 0


Verdicts = tuple[LineageVerdict, tuple[StageVerdict, ...]]


def stage_verdicts(judged_stages: Sequence[tuple[int, Mapping[str, Any]]]) -> Verdicts:
    """Return stored verdicts (`measure.verdict`) as what the report shows of them.

    A task stays lost until a stage scores at least as right after it was learned. What a stage did
    not measure is as the newest stage that measured it has left it.

    Args:
        judged_stages: the number of each active stage with its stored verdict, in order.
    """
    if not judged_stages:
        return LineageVerdict("unmeasured", "Not judged: no verdict is stored with its stages"), ()
    right_after: dict[str, float] = {}
    lost: dict[str, None] = {}  # the names of tasks in the order of their loss
    measured: dict[str, None] = {}
    few: dict[str, None] = {}  # the tasks that are below their first score on too few rows to judge
    parts: dict[str, Outcome] = {}  # of general ability, and the old tasks together
    verdicts: list[StageVerdict] = []
    for stage, judged in judged_stages:
        for name, change in judged["old"].items():
            if change["before"] is not None:
                measured[name] = None
            at_first = right_after.setdefault(name, change["after"])
            first = change.get("first", at_first)  # of a sample's own rows
            if change["after"] >= first:
                lost.pop(name, None)
            few.pop(name, None)
            if fell_unseen(first, change):
                few[name] = None
        for name in (*judged["lost"], *judged["lost_before"]):
            lost.setdefault(name)
        verdicts.append(
            _stage_verdict(stage, judged, still_lost=list(lost), right_after=right_after)
        )
        if judged["old"]:  # these are judged anew
            parts.pop(TOGETHER, None)
        for outcome in verdicts[-1].outcomes:
            is_part = outcome.is_general or outcome.task == TOGETHER
            if is_part and outcome.status != "unmeasured":
                parts[outcome.task] = outcome
        if "undone" in judged:
            lost.pop(judged["task"], None)
            few.pop(judged["task"], None)
        elif judged["learned"]:
            right_after[judged["task"]] = judged["learned"]["after"]
    lost_parts = [name for name, outcome in parts.items() if outcome.status == "lost"]
    verdict = _lineage_verdict(verdicts, list(lost), lost_parts, len(measured), list(few))
    return verdict, tuple(verdicts)


def _lineage_verdict(
    verdicts: Sequence[StageVerdict],
    lost: Sequence[str],
    lost_parts: Sequence[str],
    measured: int,
    few: Sequence[str],
) -> LineageVerdict:
    """Return the verdict on all stages.

    Args:
        verdicts: the verdicts on them.
        lost: the tasks that are lost.
        lost_parts: what is lost of general ability, and of the old tasks together.
        measured: how many old tasks were measured.
        few: the tasks that are below their first score on too few rows to judge.
    """
    if lost or lost_parts:
        names = ", ".join([*lost, *lost_parts])
        return LineageVerdict("lost", f"Lost: {names}", tuple(lost), measured)
    if measured and few:
        headline = f"Nothing lost beyond noise, but too few rows to tell of {', '.join(few)}"
        return LineageVerdict("noise", headline, measured=measured)
    if measured:
        return LineageVerdict("kept", "Nothing lost beyond noise", measured=measured)
    if all(outcome.after is None for verdict in verdicts for outcome in verdict.outcomes):
        headline = "Not measured: no task has test rows"
    elif len(verdicts) > 1:
        headline = "Not measured: no old task was scored before and after a stage"
    else:
        headline = "One stage, so there is no old task to lose"
    return LineageVerdict("unmeasured", headline)


def _stage_verdict(
    stage: int,
    judged: Mapping[str, Any],
    still_lost: Sequence[str],
    right_after: Mapping[str, float],
) -> StageVerdict:
    old = [
        _old(
            name,
            change,
            lost=name in judged["lost"],
            still_lost=name in still_lost,
            right_after=change.get("first", right_after[name]),
        )
        for name, change in judged["old"].items()
    ]
    old += _together(judged)
    if judged.get("general"):
        old += [_checks(judged["general"]), *_lm_eval(judged["general"].get("lm_eval", {}))]
    old.sort(key=lambda outcome: ORDER.index(outcome.status))
    unmeasured = [
        Outcome("unmeasured", NOT_MEASURED, name, evidence="no test rows, or they have changed")
        for name in judged["unmeasured"]
        if name != judged["task"]
    ]
    is_taken_out = "undone" in judged
    new = _learned(judged["task"], judged["learned"], is_taken_out)
    if "alone" in judged:
        alone = f"on its own, the checkpoint has {judged['alone']:.3f}"
        new = replace(new, evidence=f"{new.evidence}; {alone}")
    outcomes = (new, *old, *unmeasured)
    status, headline = _stage_headline(outcomes)
    return StageVerdict(
        stage=stage,
        task=judged["task"],
        status=status,
        headline=headline,
        outcomes=outcomes,
        suggestion=judged["suggestion"],
    )


def _stage_headline(outcomes: Sequence[Outcome]) -> tuple[Status, str]:
    new, *old = outcomes
    for label, words in (
        (LOST, "lost {}"),
        (LOST_BEFORE, "{} lost at an earlier stage"),
        (COLLAPSED, "answers to {} have collapsed"),
    ):
        names = [outcome.task for outcome in outcomes if outcome.label == label]
        if names:
            return "lost", words.format(", ".join(names))
    if any(outcome.difference is not None for outcome in old):
        return "kept", "nothing lost beyond noise"
    if old or new.status == "unmeasured":
        return "unmeasured", "not measured"
    return "kept", "the first task, so there is no old task to lose"


def _learned(name: str, change: Mapping[str, Any] | None, is_taken_out: bool) -> Outcome:
    """Return what became of the task that the stage learned, or that it took out."""
    if change is None:
        return Outcome("unmeasured", NOT_MEASURED, name, evidence="there are no test rows")
    if is_taken_out:
        return _outcome("kept", "taken out", name, change)
    before, after = change["before"], change["after"]
    if change["collapse"]:
        return _outcome("lost", COLLAPSED, name, change)
    if before is not None and after <= before < 1:
        return _outcome("noise", "not learned", name, change)
    return _outcome("kept", "learned", name, change)


def _old(
    name: str, change: Mapping[str, Any], lost: bool, still_lost: bool, right_after: float
) -> Outcome:
    """Return what became of an old task.

    Args:
        name: the name of the task.
        change: what the stage did to its answers.
        lost: whether the stage lost it.
        still_lost: whether it is lost, at this stage or an earlier one.
        right_after: its score right after it was learned.
    """
    before, after = change["before"], change["after"]
    if lost:
        return _outcome("lost", LOST, name, change)
    if still_lost:
        return _outcome("lost", LOST_BEFORE, name, change, right_after)
    if right_after == 0 and not before and not after:
        return _outcome("unmeasured", "nothing to lose", name, change)
    if change["collapse"]:
        return _outcome("lost", COLLAPSED, name, change)
    if before is None:
        return _outcome("unmeasured", "first measured", name, change)
    if after < before:
        return _outcome("noise", WITHIN_NOISE, name, change)
    if fell_unseen(right_after, change):
        outcome = _outcome("noise", BELOW, name, change, right_after)
        return replace(outcome, evidence=f"{outcome.evidence}: so few rows cannot show a loss")
    return _outcome("kept", "kept", name, change)


def _together(judged: Mapping[str, Any]) -> list[Outcome]:
    """Return what became of the sampled rows of all old tasks, if no one of these shows a loss."""
    change = judged.get("together")
    if change is None or judged["lost"] or judged["lost_before"]:
        return []
    if change["lost"]:
        return [_outcome("lost", LOST, TOGETHER, change)]
    if change["lost_before"]:
        return [_outcome("lost", LOST_BEFORE, TOGETHER, change, change.get("first"))]
    return []


def _checks(general: Mapping[str, Any]) -> Outcome:
    """Return what is left of general ability, against the untouched base (`measure.guard`)."""
    unmeasured = Outcome("unmeasured", NOT_MEASURED, GENERAL, is_general=True)
    if "unmeasured" in general:
        return replace(unmeasured, evidence=general["unmeasured"])
    reference, rows = general["reference"], general["rows"]
    passed, fell, rose = general["passed_by_reference"], general["fell"], general["rose"]
    divergence = "" if general["kl"] is None else f"; KL {general['kl']:.3f} nats per token"
    if not general["judged"]:
        evidence = f"{reference} itself passes only {passed} of {rows} checks{divergence}"
        return replace(unmeasured, evidence=evidence)
    status, label = _status_of_general(checks_of(general), fell)
    return Outcome(
        status=status,
        label=label,
        task=GENERAL,
        before=passed / rows,
        after=(passed - fell + rose) / rows,
        rows=rows,
        evidence=f"against {reference}: {fell} of the {passed} checks that it passes now fail, "
        f"{rose} others now pass, p = {general['p']:.2g}{divergence}",
        is_general=True,
    )


def _lm_eval(tasks: Mapping[str, Any]) -> list[Outcome]:
    """Return what is left of each of lm-eval's tasks, against the untouched base."""
    outcomes = []
    for name, task in tasks.items():
        status, label = _status_of_general(task, task["fell"])
        documents = task["documents"]
        if not documents:
            status, label = "unmeasured", NOT_MEASURED
        outcomes.append(
            Outcome(
                status=status,
                label=label,
                task=f"{GENERAL} (lm-eval's {name})",
                before=task["before"],
                after=task["now"],
                rows=documents,
                evidence=f"{task['metric']} against the base: {task['fell']} of {documents} "
                f"documents fell, {task['rose']} rose, p = {task['p']:.2g}",
                is_general=True,
            )
        )
    return outcomes


def _status_of_general(part: Mapping[str, Any], fell: int) -> tuple[Status, str]:
    """Return the status and the label of the checks, or of one of lm-eval's tasks."""
    if part["lost"]:
        return "lost", LOST_BEFORE if part.get("lost_before") else LOST
    return ("noise", WITHIN_NOISE) if fell else ("kept", "kept")


def _outcome(
    status: Status,
    label: str,
    name: str,
    change: Mapping[str, Any],
    right_after: float | None = None,
) -> Outcome:
    evidence = _evidence(change, label)
    if right_after is not None:
        evidence = f"{right_after:.3f} right after it was learned; in this stage {evidence}"
    if change["collapse"]:
        evidence = f"{change['collapse']}; {evidence}"
    return Outcome(
        status=status,
        label=label,
        task=name,
        before=change["before"],
        after=change["after"],
        rows=change["rows"],
        evidence=evidence,
    )


def _evidence(change: Mapping[str, Any], label: str) -> str:
    """Return how many test rows fell and rose, and whether that is beyond noise."""
    rows, fell, rose, p = change["rows"], change["fell"], change["rose"], change["p"]
    test_rows = f"{rows} test row{'s' * (rows != 1)}"
    if "of" in change:
        test_rows = f"{rows} sampled test row{'s' * (rows != 1)} (of {change['of']})"
    if change["before"] is None:
        return test_rows
    counts = (
        f"{fell} of {test_rows} fell, {rose} rose" if fell + rose else f"no change in {test_rows}"
    )
    if fell <= rose:
        return counts
    if label == LOST:
        beyond = "beyond noise, " if p < SIGNIFICANCE else ""
        return f"{counts}: {beyond}p = {p:.2g}"
    if p < SIGNIFICANCE:  # Holm's correction for the number of old tasks
        return f"{counts}: p = {p:.2g}, within noise for this many tasks"
    if not can_show_a_loss(rows):
        return f"{counts}: so few rows cannot show a loss"
    if not could_show_a_loss(change):
        return f"{counts}, all that were right: so few cannot show a loss"
    return f"{counts}: within noise, p = {p:.2g}"
