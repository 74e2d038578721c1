"""General ability against another model: which checks flipped, KL, and the form of the answers.

The other model, the reference, is usually the untouched base. Both answer the same rows greedily,
and each answer is judged by the row's checks. General ability counts as lost if

- the one-sided exact sign test over the checks that flipped has p < 0.05, and
- at least 3 of 100 checks are lost net: those that only the reference passes minus those that only
  the model passes.

The KL divergence and the form of the answers are reported, but decide nothing.
"""

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import fmean
from typing import Any

from perdure.config import GuardSettings
from perdure.errors import PerdureError
from perdure.measure.guard.checks import passes
from perdure.measure.guard.divergence import mean_divergence, same_vocabulary
from perdure.measure.guard.loss import is_loss
from perdure.measure.guard.rows import GuardRow
from perdure.measure.guard.subject import Subject
from perdure.measure.guard.words import words
from perdure.measure.predict import LONG, Generated, generate_answers
from perdure.measure.statistics import sign_test


ABLE = 0.1  # share of the checks that the reference must pass, or nothing is judged
MAX_NEW_TOKENS = GuardSettings.max_new_tokens
LIMIT = 70  # rows that are asked where nothing else decides their number
BATCH_SIZE = 32


def guard(
    reference: Subject,
    subject: Subject,
    rows: Sequence[GuardRow],
    system: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    reference_answers: Sequence[Generated] | None = None,
    answers: Sequence[Generated] | None = None,
    with_kl: bool = True,
) -> dict[str, Any]:
    """Measure what a model has lost of a reference's general ability.

    Args:
        reference: the model before, usually the untouched base.
        subject: the model now.
        rows: what both are asked.
        system: a system prompt before each row.
        max_new_tokens: the most tokens of an answer.
        batch_size: rows per batch.
        reference_answers: the result of `ask` for the reference, if there is one already.
        answers: the same for the model now.
        with_kl: whether the KL is measured. It cannot be if the reference's network has changed
            since it gave its answers.

    Returns:
        The result of `compare` with `kl` and `verdict`, as plain JSON. If the KL is infinite,
        `kl` is None and `kl_is_infinite` is true.

    Raises:
        NotFiniteError: the outputs of a model are not finite.
        PerdureError: a model is an encoder, or cannot be asked the rows.
    """
    in_template = has_template(reference)

    def answers_of(asked: Subject) -> list[Generated]:
        return ask(
            asked,
            rows,
            in_template=in_template,
            system=system,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )

    before = answers_of(reference) if reference_answers is None else reference_answers
    now = answers_of(subject) if answers is None else answers
    kl = mean_divergence(reference, subject, before, batch_size) if with_kl else None
    result = {
        "reference": reference.name,
        "model": subject.name,
        "chat_template": in_template,
        "system": system,
        **compare(rows, before, now),
        "kl": None if kl == math.inf else kl,  # JSON has no infinity
        "same_vocabulary": same_vocabulary(reference, subject),
    }
    if not with_kl:
        result["weights_kept"] = False
    if kl == math.inf:
        result["kl_is_infinite"] = True
    return {**result, "verdict": words(result)}


def has_template(subject: Subject) -> bool:
    """Return whether a model is asked in its chat template."""
    return subject.base.kind == "causal" and bool(subject.base.tokenizer.chat_template)


def ask(
    subject: Subject,
    rows: Sequence[GuardRow],
    in_template: bool,
    system: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
) -> list[Generated]:
    """Return a model's answer to each row, decoded greedily.

    Raises:
        PerdureError: the model is an encoder, or cannot be asked the rows.
    """
    kind = subject.base.kind
    if kind == "encoder":
        raise PerdureError(
            f"{subject.name} is an encoder, which cannot generate, so its general ability cannot "
            "be checked; measure it on tasks with `perdure evaluate`"
        )
    with ExitStack() as stack:
        stack.enter_context(subject.context())
        answers, _ = generate_answers(
            subject.base,
            [row.as_chat(system) if in_template else row.as_text(kind, system) for row in rows],
            max_length=LONG,
            max_completion_length=max_new_tokens,
            batch_size=batch_size,
            where="the rows",
        )
    return answers


def compare(
    rows: Sequence[GuardRow],
    reference_answers: Sequence[Generated],
    answers: Sequence[Generated],
) -> dict[str, Any]:
    """Judge the answers of both models, and compare them row by row.

    Returns:
        `lost`: whether general ability is lost. `judged`: whether the reference passes enough
        checks to tell. `rows`, `passed_by_reference` and `passed`: numbers of rows. `p`: of the
        sign test. `net`: the share of checks lost net. `skills`: the numbers by skill. `flips`: the
        rows of which only one model's answer passes, with both answers. `before` and `now`: the
        form of the reference's and the model's answers.
    """
    passed_before = [passes(a.text, r.checks) for a, r in zip(reference_answers, rows, strict=True)]
    passed_now = [passes(a.text, r.checks) for a, r in zip(answers, rows, strict=True)]
    flips, skills = [], {}
    for row, before, now, was_right, is_right in zip(
        rows, reference_answers, answers, passed_before, passed_now, strict=True
    ):
        counts = skills.setdefault(
            row.skill, {"rows": 0, "passed_by_reference": 0, "passed": 0, "fell": 0, "rose": 0}
        )
        counts["rows"] += 1
        counts["passed_by_reference"] += was_right
        counts["passed"] += is_right
        counts["fell"] += was_right and not is_right
        counts["rose"] += is_right and not was_right
        if was_right != is_right:
            flips.append(
                {
                    "id": row.id,
                    "skill": row.skill,
                    "language": row.language,
                    "prompt": row.messages[-1]["content"],
                    "before": before.text,
                    "now": now.text,
                    "passes": is_right,
                }
            )
    fell, rose = (sum(counts[key] for counts in skills.values()) for key in ("fell", "rose"))
    p, net = sign_test(fell, rose), (fell - rose) / len(rows)
    judged = is_able(passed_before)
    return {
        "lost": judged and is_loss(fell, rose, len(rows)),
        "judged": judged,
        "rows": len(rows),
        "passed_by_reference": sum(passed_before),
        "passed": sum(passed_now),
        "fell": fell,
        "rose": rose,
        "p": p,
        "net": net,
        "skills": skills,
        "before": form(reference_answers),
        "now": form(answers),
        "flips": flips,
    }


def not_finite(
    reference: Subject,
    subject: Subject,
    rows: Sequence[GuardRow],
    reference_answers: Sequence[Generated],
) -> dict[str, Any]:
    """Return the result of `guard` for a model whose outputs are not finite: everything is lost.

    It has no answers, which counts as an empty answer to each row.
    """
    empty = [Generated(answer.prompt, ids=[], ended=False, text="") for answer in reference_answers]
    result = {
        "reference": reference.name,
        "model": subject.name,
        "chat_template": has_template(reference),
        **compare(rows, reference_answers, empty),
        "kl": None,
        "same_vocabulary": same_vocabulary(reference, subject),
        "is_finite": False,
        "lost": True,
    }
    return {**result, "verdict": words(result)}


def is_able(passed: Sequence[bool]) -> bool:
    """Return whether a reference passes enough checks for a loss to be judged."""
    return sum(passed) >= ABLE * len(passed)


def form(answers: Sequence[Generated]) -> dict[str, float]:
    """Return the mean length of answers in tokens, and the shares of empty and of equal answers.

    The token that ends an answer does not count. An answer is among the equal ones if another row
    has the same text as its answer.
    """
    texts = [answer.text.strip() for answer in answers]
    times = Counter(texts)
    return {
        "tokens": fmean(len(answer.ids) - answer.ended for answer in answers),
        "empty": fmean(not text for text in texts),
        "equal": fmean(times[text] > 1 for text in texts),
    }
