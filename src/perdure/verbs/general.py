"""General ability at a stage: the guard asks the new stage and the untouched base the same rows."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from perdure.config import GuardSettings
from perdure.lineage.guard_answers import stored_guard_answers
from perdure.lineage.lineage import Lineage
from perdure.measure.guard.budget import FEWEST, affordable, cost
from perdure.measure.guard.checks import passes
from perdure.measure.guard.guard import LIMIT, ask, guard, has_template, is_able
from perdure.measure.guard.kept import (
    Kept,
    fallen_and_risen,
    keep,
    question_key,
    write_answers,
)
from perdure.measure.guard.lm_eval_tasks import LmEvalTasks
from perdure.measure.guard.loss import checks_of, with_lm_eval
from perdure.measure.guard.rows import GuardRow, read_guard_rows, sampled
from perdure.measure.guard.subject import Subject
from perdure.measure.predict import Generated
from perdure.measure.statistics import SIGNIFICANCE, sign_test
from perdure.models.adapter_disabled import adapter_disabled
from perdure.models.base import Base
from perdure.models.layout import GUARD
from perdure.train.method import Method
from perdure.train.stage import scoring_context
from perdure.verbs.lm_eval import measure_tasks


def measure_general(
    lineage: Lineage,
    base: Base,
    methods: Sequence[Method],
    beginning: Callable[[], Base] | None,
    counts: Mapping[str, Any],
    number: int,
    built: Path,
    tasks: LmEvalTasks | None = None,
) -> dict[str, Any]:
    """Measure general ability at a stage before its commit, and keep the answers in its folder.

    Args:
        lineage: the lineage without the stage.
        base: the model of the stage.
        methods: the methods of the lineage.
        beginning: loads the untouched base if it is not the model with its adapter disabled.
        counts: what the stage learned (`learn_stage`).
        number: the stage's number.
        built: the folder of the stage's files.
        tasks: lm-eval's tasks, if the settings name any.

    Returns:
        The result of the guard without the rows that flipped, with `since` (how many of its rows
        fell and rose since the newest earlier stage that was measured, and p) and `lost_before`
        (whether that stage had lost it already, and this one lost nothing more beyond noise). If
        its rows are not asked, only `unmeasured`, the reason. With lm-eval's tasks also `lm_eval`
        and `checks` (`with_lm_eval`).
    """
    settings = lineage.config.guard
    if settings is None:
        return {"unmeasured": "the guard is switched off"}
    if base.kind == "encoder":
        return {"unmeasured": "an encoder does not write"}

    @cache
    def subjects() -> tuple[Subject, Subject]:
        return _subjects(lineage, base, methods, beginning, number)

    general = _measure_checks(lineage, settings, subjects, base=base, counts=counts, built=built)
    if tasks is None:
        return general
    return with_lm_eval(general, measure_tasks(lineage, tasks, *subjects(), built=built))


def _measure_checks(
    lineage: Lineage,
    settings: GuardSettings,
    subjects: Callable[[], tuple[Subject, Subject]],
    base: Base,
    counts: Mapping[str, Any],
    built: Path,
) -> dict[str, Any]:
    """Ask the guard's rows, of which there may be none; `subjects` makes the base and the stage."""
    rows = _rows(settings, base, counts, always=_is_gated(lineage))
    if not rows and not settings.share:
        return {"unmeasured": "guard.share is 0"}
    if not rows:
        return {"unmeasured": "the stage was so short that the guard would have taken too long"}
    reference, subject = subjects()
    asked: dict[str, Any] = {
        "in_template": has_template(reference),
        "system": settings.system,
        "max_new_tokens": settings.max_new_tokens,
    }
    bf16 = bool(lineage.config.training.get("bf16"))
    questions = [question_key(row, **asked, bf16=bf16) for row in rows]
    base_answers = _base_answers(lineage, reference, rows, questions, asked)
    # A base that cannot do the checks has nothing to lose of them, and only the KL is measured.
    able = is_able([passes(a.text, row.checks) for a, row in zip(base_answers, rows, strict=True)])
    answers = ask(subject, rows, **asked) if able else None
    result = guard(
        reference,
        subject,
        rows,
        system=settings.system,
        max_new_tokens=settings.max_new_tokens,
        reference_answers=base_answers,
        answers=answers if able else base_answers,
    )
    # What can be had from the answers and the numbers is not kept, nor what was not asked.
    for key in ("flips", "verdict") if able else ("flips", "verdict", "now"):
        del result[key]
    kept = {
        row.id: keep(row, question, base_answer, answer)
        for row, question, base_answer, answer in zip(
            rows, questions, base_answers, answers or [None] * len(rows), strict=True
        )
    }
    write_answers(built / GUARD, kept)
    return {**result, **_since_the_last_stage(lineage, rows, kept, lost=result["lost"])}


def _base_answers(
    lineage: Lineage,
    reference: Subject,
    rows: Sequence[GuardRow],
    questions: Sequence[str],
    asked: dict[str, Any],
) -> list[Generated]:
    """Return the base's answer to each row, asking only what no earlier stage has asked."""
    known = _known_answers(lineage, set(questions))
    pairs = list(zip(rows, questions, strict=True))
    unknown = [row for row, question in pairs if question not in known]
    new_answers = iter(ask(reference, unknown, **asked) if unknown else ())
    return [known[question] if question in known else next(new_answers) for _, question in pairs]


def _rows(
    settings: GuardSettings, base: Base, counts: Mapping[str, Any], always: bool
) -> tuple[GuardRow, ...]:
    """Return the rows to ask: as many as `limit` or `share` allow, and none if these are few.

    Args:
        settings: the guard's settings.
        base: the model of the stage.
        counts: what the stage learned, empty for a checkpoint that was trained elsewhere.
        always: whether at least the fewest rows are asked, however short the stage was.
    """
    rows = read_guard_rows(settings.rows)
    passed = counts.get("rows")
    if settings.limit is not None or passed is None:
        return sampled(rows, settings.limit or LIMIT)
    limit = affordable(
        settings.share,
        forward=passed["forward"] * counts["row_tokens"],
        backward=passed["backward"] * counts["row_tokens"],
        row_cost=cost(base, rows, settings.system, settings.max_new_tokens),
    )
    fewest = min(FEWEST, len(rows))
    if limit < fewest:
        limit = fewest if always else 0
    return sampled(rows, limit) if limit else ()


def _is_gated(lineage: Lineage) -> bool:
    """Return whether the gate has a limit for general ability, which must then be measured."""
    gate = lineage.config.gate
    return gate.general is not None or gate.kl is not None


def _subjects(
    lineage: Lineage,
    base: Base,
    methods: Sequence[Method],
    beginning: Callable[[], Base] | None,
    number: int,
) -> tuple[Subject, Subject]:
    """Return the untouched base and the stage, in the contexts in which a stage is scored."""

    def of_the_stage() -> ExitStack:
        return scoring_context(base, lineage.config, methods)

    def of_the_base() -> ExitStack:
        stack = scoring_context(base, lineage.config, methods=())
        stack.enter_context(adapter_disabled(base.model))
        return stack

    subject = Subject(f"stage {number}", base, of_the_stage)
    if beginning is None:
        return Subject("the base", base, of_the_base), subject
    untouched = beginning()
    return (
        Subject("the base", untouched, lambda: scoring_context(untouched, lineage.config, ())),
        subject,
    )


def _known_answers(lineage: Lineage, questions: Collection[str]) -> dict[str, Generated]:
    """Return the base's answers to some questions that earlier stages keep, also reverted ones.

    The newest stages are read first, and only as many as are needed.
    """
    known: dict[str, Generated] = {}
    for entry in sorted(lineage.stage_entries.values(), key=lambda e: -e["stage"]):
        if known.keys() >= set(questions):
            break
        if "folder" in entry and lineage.is_intact(entry, GUARD):
            stored = stored_guard_answers(lineage, entry)
            known = {kept.question: kept.base for kept in stored.values()} | known
    return known


def _since_the_last_stage(
    lineage: Lineage, rows: Sequence[GuardRow], kept: Mapping[str, Kept], lost: bool
) -> dict[str, Any]:
    """Return what changed since the newest stage that was measured, in the rows of both."""
    if not lineage.stages:
        return {"since": None, "lost_before": False}
    before: Mapping[str, Kept] = {}
    had_lost = False
    for entry in reversed(lineage.stages):
        general = (lineage.verdict(entry) or {}).get("general") or {}
        if general.get("judged"):
            before = stored_guard_answers(lineage, entry)
            had_lost = checks_of(general).get("lost", False)
            break
    fell, rose = fallen_and_risen(rows, before, kept)
    p = sign_test(fell, rose)
    return {
        "since": {"fell": fell, "rose": rose, "p": p},
        "lost_before": lost and had_lost and p >= SIGNIFICANCE,
    }
