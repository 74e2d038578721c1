"""The guard's answers at a stage, as they are kept in its folder.

The base's answers are among them, with their token ids, so that later stages need not ask the base
the same rows again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

from perdure.measure.compressed import read_compressed, write_compressed
from perdure.measure.guard.checks import passes
from perdure.measure.guard.rows import GuardRow
from perdure.measure.predict import Generated
from perdure.seeds import digest


@dataclass(frozen=True)
class Kept:
    """What is kept of one row.

    Args:
        question: a hash of everything that decides the base's answer (`question_key`).
        prompt: the row's last message.
        base: the base's answer.
        base_passes: whether it passes the row's checks.
        answer: the text of the stage's answer, None if only the base was asked.
        passes: whether the stage's answer passes the checks, None if it was not asked.
    """

    question: str
    prompt: str
    base: Generated
    base_passes: bool
    answer: str | None
    passes: bool | None


class _Generated(TypedDict):
    prompt: list[int]
    ids: list[int]
    ended: bool
    text: str


class _Stored(TypedDict):
    question: str
    prompt: str
    base: _Generated
    base_passes: bool
    answer: str | None
    passes: bool | None


def question_key(
    row: GuardRow, in_template: bool, system: str | None, max_new_tokens: int, bf16: bool
) -> str:
    """Return a hash of everything that decides the base's answer to a row, but the base."""
    return digest(row.messages, in_template, system, max_new_tokens, bf16)[:16]


def keep(row: GuardRow, question: str, base_answer: Generated, answer: Generated | None) -> Kept:
    """Judge the answers to a row, and return what is kept of them."""
    return Kept(
        question=question,
        prompt=row.messages[-1]["content"],
        base=base_answer,
        base_passes=passes(base_answer.text, row.checks),
        answer=None if answer is None else answer.text,
        passes=None if answer is None else passes(answer.text, row.checks),
    )


def write_answers(file: Path, answers: Mapping[str, Kept]) -> None:
    """Write what is kept of each row, by the row's id, as compressed JSON."""
    write_compressed(file, {row_id: asdict(kept) for row_id, kept in answers.items()})


def read_answers(file: Path) -> dict[str, Kept]:
    """Read what `write_answers` wrote; a stage without the file has no answers.

    Raises:
        PerdureError: the file is damaged.
    """
    if not file.is_file():
        return {}
    return read_compressed(
        file,
        dict[str, _Stored],
        lambda plain: {
            row_id: Kept(**{**kept, "base": Generated(**kept["base"])})
            for row_id, kept in plain.items()
        },
    )


def fallen_and_risen(
    rows: Sequence[GuardRow], before: Mapping[str, Kept], now: Mapping[str, Kept]
) -> tuple[int, int]:
    """Return how many rows passed before and fail now, and the reverse.

    Only rows whose question was answered both times count. Both answers are judged by the checks
    that the rows have now.
    """
    asked_twice = [
        row
        for row in rows
        if (old := before.get(row.id)) is not None
        and old.question == now[row.id].question
        and None not in (old.answer, now[row.id].answer)
    ]
    fell = rose = 0
    for row in asked_twice:
        passed, passes_now = passes(before[row.id].answer or "", row.checks), now[row.id].passes
        fell += passed and not passes_now
        rose += bool(passes_now) and not passed
    return fell, rose
