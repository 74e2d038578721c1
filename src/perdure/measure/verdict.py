"""What a stage gained and lost, in words, from the answers that were given before and after it.

Nothing here runs a model. The old answers to a task are those that were stored with the newest
earlier stage that was scored on it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from perdure.measure.predictions import Predictions, on_common_rows
from perdure.measure.statistics import SIGNIFICANCE, fell_unseen, holm, sign_test


# Answers have collapsed if this share of them is equal, or empty or another task's.
EQUAL_SHARE, FOREIGN_SHARE = 0.9, 0.5
TOGETHER = "the old tasks together"  # stands where the name of a task does
FEWEST_ROWS = 5  # with fewer test rows, nothing is said of a collapse


@dataclass(frozen=True)
class Asked:
    """What is known of a task's test rows.

    Args:
        references: the first correct answer to each row.
        options: the task's closed answers, None if an answer is any text.
    """

    references: Sequence[str]
    options: Sequence[str] | None


@dataclass(frozen=True)
class Change:
    """What a stage did to the answers to one task.

    Args:
        before: the mean score before the stage.
        after: the mean score after it.
        rows: the number of test rows that are compared.
        fell: the number of rows that score less than before.
        rose: the number of rows that score more.
        p: the probability of so many falls among the changed rows by chance (`sign_test`).
        collapse: what is wrong with the answers as a whole, None if nothing is.
        of: the number of all test rows, if only a sample of them is compared. Every mean is one
            over the sample then.
        first: the mean score of these rows right after the task was learned, if it is known, and if
            they are a sample or so few that a fall since then cannot be beyond noise.
    """

    before: float | None
    after: float
    rows: int
    fell: int
    rose: int
    p: float
    collapse: str | None = None
    of: int | None = None
    first: float | None = None


def compare(
    before: Predictions | None, after: Predictions | None, first: Predictions | None = None
) -> Change | None:
    """Compare the scores of the same rows; None if the task was not scored after the stage.

    If only some rows were asked before or after the stage, those are compared that were asked both
    times. Then `first`, the answers right after the task was learned, give the score of these rows
    at that time.
    """
    if after is None or not after.scores:
        return None
    common = on_common_rows(before, after) if before else None
    before, after = common or (None, after)
    mean, rows, first_mean = fmean(after.scores), len(after.scores), _first_mean(first, after)
    if before is None:
        return Change(
            before=None,
            after=mean,
            rows=rows,
            fell=0,
            rose=0,
            p=1.0,
            of=after.of,
            first=first_mean,
        )
    pairs = list(zip(before.scores, after.scores, strict=True))
    # A score that is not a number counts as fallen, never as kept.
    fell, rose = sum(not a <= b for a, b in pairs), sum(a < b for a, b in pairs)
    return Change(
        before=fmean(before.scores),
        after=mean,
        rows=rows,
        fell=fell,
        rose=rose,
        p=sign_test(fell, rose),
        of=after.of,
        first=first_mean,
    )


def _first_mean(first: Predictions | None, sample: Predictions) -> float | None:
    """Return the mean of a sample's rows right after the task was learned, None if unknown."""
    common = on_common_rows(first, sample) if first and sample.of is not None else None
    return fmean(common[0].scores) if common else None


def together(changes: Iterable[Change]) -> Change | None:
    """Return the change of the rows of several tasks together, None without a known change.

    A sample of a few rows of each task can show that the tasks have lost, but not which of them.
    """
    known = [change for change in changes if change.before is not None]
    rows = sum(change.rows for change in known)
    if not rows:
        return None
    fell, rose = sum(c.fell for c in known), sum(c.rose for c in known)
    return Change(
        before=sum((c.before or 0.0) * c.rows for c in known) / rows,
        after=sum(c.after * c.rows for c in known) / rows,
        rows=rows,
        fell=fell,
        rose=rose,
        p=sign_test(fell, rose),
        of=sum(c.of or c.rows for c in known),
    )


def collapsed(
    answers: Sequence[str],
    asked: Asked,
    others: Mapping[str, Asked],
    rows: Sequence[int] | None = None,
) -> str | None:
    """Return what is wrong with the answers to a task as a whole, None if nothing is.

    Args:
        answers: the model's answers to the task's test rows.
        asked: the task.
        others: the other tasks, by name.
        rows: the indices of the test rows that were asked, None if they are all.
    """
    count, stripped = len(answers), [answer.strip() for answer in answers]
    if count < FEWEST_ROWS:
        return None
    empty = sum(not answer for answer in stripped)
    if empty >= FOREIGN_SHARE * count:
        return f"{_share(empty, count)} are empty"
    common, most = Counter(stripped).most_common(1)[0]
    references = asked.references if rows is None else [asked.references[row] for row in rows]
    right = Counter(text.strip() for text in references).most_common(1)[0][1]
    if most >= EQUAL_SHARE * count and right < EQUAL_SHARE * count:
        return f"{_share(most, count)} are {_short(common)!r}"
    own = {text.strip() for text in asked.options or asked.references}
    for name, other in others.items():
        foreign = {option.strip() for option in other.options or ()} - own
        strange = sum(answer in foreign for answer in stripped)
        if strange >= FOREIGN_SHARE * count:
            return f"{_share(strange, count)} are those of the task {name!r}"
    return None


def _share(part: int, count: int) -> str:
    return f"all {count} answers" if part == count else f"{part} of {count} answers"


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def verdict(
    new: str,
    before: Mapping[str, Predictions],
    after: Mapping[str, Predictions],
    asked: Mapping[str, Asked],
    first: Mapping[str, Predictions] | None = None,
    unmeasured: Sequence[str] = (),
    general: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Judge a stage.

    Args:
        new: the name of the task that it learned.
        before: the answers to each task before the stage, as far as they are known.
        after: the answers to each task after it.
        asked: what is known of each task's test rows.
        first: the answers to each old task right after it was learned.
        unmeasured: the tasks without test rows.
        general: what is known of general ability, with `lost` and `lost_before`; or `unmeasured`.

    Returns:
        `learned` (a `Change` of the new task, or None), `old` (a `Change` for each old task),
        `lost` (the names of the tasks that fell beyond noise or collapsed), `lost_before` (of those
        that are not in `lost`, but are below their scores right after they were learned, beyond
        noise), `unmeasured` and `general`. If a task was asked only some of its test rows, there is
        also `together` (the `Change` of the rows of all old tasks, with whether it is `lost`, or
        `lost_before`).
    """
    changes: dict[str, Change] = {}
    for name, predictions in after.items():
        change = compare(before.get(name), predictions, (first or {}).get(name))
        if change is None:
            continue
        others = {other: known for other, known in asked.items() if other != name}
        collapse = None
        if name in asked:
            collapse = collapsed(predictions.answers, asked[name], others, predictions.rows)
        changes[name] = replace(change, collapse=collapse)
    learned = changes.pop(new, None)
    since_learned = {name: compare((first or {}).get(name), after[name]) for name in changes}
    for name, since in since_learned.items():
        if since is None or since.before is None:
            continue
        if fell_unseen(since.before, {"rows": since.rows, "after": since.after}):
            changes[name] = replace(changes[name], first=since.before)
    is_sampled = any(change.of is not None for change in changes.values())
    pooled = together(changes.values()) if is_sampled else None
    pooled_since = together(c for c in since_learned.values() if c) if is_sampled else None
    fallen = _fallen({**changes, TOGETHER: pooled})
    lost = [
        name
        for name, change in changes.items()
        if name in fallen or (change.collapse and _fell(change))
    ]
    fallen_since = _fallen({**since_learned, TOGETHER: pooled_since})
    lost_before = [name for name in changes if name in fallen_since and name not in lost]
    judged_together = {}
    if pooled:
        if pooled_since and pooled_since.rows == pooled.rows:
            pooled = replace(pooled, first=pooled_since.before)
        judged_together["together"] = {
            **plain(pooled),
            "lost": TOGETHER in fallen,
            "lost_before": TOGETHER in fallen_since and TOGETHER not in fallen,
        }
    return {
        "task": new,
        "learned": plain(learned) if learned else None,
        "old": {name: plain(change) for name, change in changes.items()},
        "lost": lost,
        "lost_before": lost_before,
        **judged_together,
        "unmeasured": list(unmeasured),
        "general": dict(general or {"unmeasured": "it was not asked for"}),
    }


def plain(change: Change) -> dict[str, Any]:
    """Return a change as it is stored; `of` and `first` are only there if they are known."""
    plain = asdict(change)
    return {k: v for k, v in plain.items() if v is not None or k not in ("of", "first")}


def _fallen(changes: Mapping[str, Change | None]) -> list[str]:
    """Return the tasks that fell beyond noise, with Holm's correction for all known changes."""
    known = {
        name: change
        for name, change in changes.items()
        if change is not None and change.before is not None
    }
    adjusted = holm({name: change.p for name, change in known.items()})
    return [
        name
        for name, change in known.items()
        if _fell(change) and (adjusted[name] or 0.0) < SIGNIFICANCE
    ]


def _fell(change: Change) -> bool:
    return change.before is not None and not change.after >= change.before


def lost_now(general: Mapping[str, Any]) -> bool:
    """Return whether general ability is lost, and was not lost before the stage already.

    It holds for a part of it, such as one of lm-eval's tasks, as for all of it.
    """
    return general.get("lost", False) and not general.get("lost_before", False)
