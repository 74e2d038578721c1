"""The rows of the guard: prompts whose answers can be checked, bundled or the user's own.

    {"id": "facts-01", "skill": "facts", "language": "en",
     "prompt": "What is the capital of France?", "check": {"says": ["Paris"]}}

In place of `prompt` a row may have `messages`, the last of which is the user's. `check` names the
checks that an answer must pass (`checks.py`). Only `prompt` or `messages`, and `check`, are needed.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.data.conversations import UNANSWERED, waiting
from perdure.data.files import read_records
from perdure.data.messages import checked_text
from perdure.data.rows import Row
from perdure.errors import PerdureError, nearest
from perdure.measure.guard.checks import checked
from perdure.models.kinds import Kind
from perdure.seeds import derive


BUNDLED = Path(__file__).parent / "rows.jsonl"
KEYS = ("id", "skill", "language", "prompt", "messages", "check")


@dataclass(frozen=True)
class GuardRow:
    """A prompt of the guard.

    Args:
        id: the row's name, unlike any other's.
        skill: what the row asks for, such as facts.
        language: the language of the prompt.
        messages: the conversation; the last message is the user's.
        checks: the names of the checks that an answer must pass, with their arguments.
    """

    id: str
    skill: str
    language: str
    messages: tuple[dict[str, Any], ...]
    checks: dict[str, Any]

    def as_chat(self, system: str | None) -> Row:
        """Return the row of a task that asks this in the chat template, after a system prompt."""
        start = [{"role": "system", "content": system}] if system else []
        answer = {"role": "assistant", "content": UNANSWERED}
        return {"messages": [*start, *self.messages, answer]}

    def as_text(self, kind: Kind, system: str | None) -> Row:
        """Return the row of a task that asks this as plain text, for a base without a template.

        A causal model continues a dialogue of questions and answers. An encoder-decoder reads the
        messages, one on each line.
        """
        lines = [system] if system else []
        names = {"user": "Question: ", "assistant": "Answer: "} if kind == "causal" else {}
        lines += [names.get(m["role"], "") + m["content"] for m in self.messages]
        lines += ["Answer:"] if kind == "causal" else []
        return {"prompt": "\n".join(lines), "completion": f" {UNANSWERED}"}


def read_guard_rows(
    source: str | Path | Sequence[Mapping[str, Any]] | None = None,
) -> tuple[GuardRow, ...]:
    """Read rows from a file or a list; without either, the bundled rows.

    Raises:
        PerdureError: the file cannot be read, a row has no prompt or no check, a check is unknown,
            or two rows have the same id.
    """
    if source is None or isinstance(source, str | Path):
        where = str(source or BUNDLED)
        records = list(read_records(Path(source or BUNDLED)))
    else:
        where, records = "the rows", list(enumerate(source, 1))
    if not records:
        raise PerdureError(f"{where}: there are no rows; give at least one row with a check")
    rows = [_guard_row(raw, number, f"{where}, row {number}") for number, raw in records]
    ids: dict[str, int] = {}
    for (number, _), row in zip(records, rows, strict=True):
        if row.id in ids:
            raise PerdureError(
                f"{where}, row {number}: the id {row.id!r} is also that of row {ids[row.id]}; "
                "give each row its own"
            )
        ids[row.id] = number
    return tuple(rows)


def sampled(rows: Sequence[GuardRow], limit: int | None, seed: int = 0) -> tuple[GuardRow, ...]:
    """Draw at most `limit` rows, as many of each skill as possible, and keep their order.

    Raises:
        PerdureError: the limit is less than 1.
    """
    if limit is not None and limit < 1:
        raise PerdureError(f"a limit of rows must be at least 1, got {limit}")
    by_skill: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_skill.setdefault(row.skill, []).append(index)
    for skill, indices in by_skill.items():
        random.Random(derive(seed, "guard", skill)).shuffle(indices)
    # One row of each skill in turn, until a skill has no more.
    rounds = range(max(map(len, by_skill.values()), default=0))
    in_turn = [
        indices[place] for place in rounds for indices in by_skill.values() if place < len(indices)
    ]
    return tuple(rows[index] for index in sorted(in_turn[:limit]))


def _guard_row(raw: Any, number: int, where: str) -> GuardRow:
    if not isinstance(raw, Mapping):
        raise PerdureError(f'{where}: expected an object such as {{"prompt": ..., "check": ...}}')
    record = {key: value for key, value in raw.items() if value is not None}
    for key in record:
        if key not in KEYS:
            raise PerdureError(f"{where}: no key {key!r}; {nearest(str(key), KEYS)}")
    if ("prompt" in record) == ("messages" in record):
        raise PerdureError(f"{where}: give either prompt or messages")
    names = {
        key: checked_text(record.get(key, default), f"{where}: {key}")
        for key, default in (("id", str(number)), ("skill", "own"), ("language", "-"))
    }
    return GuardRow(
        **names, messages=_messages(record, where), checks=checked(record.get("check"), where)
    )


def _messages(record: Mapping[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    """Return the conversation of a record, checked as the rows of a task are."""
    if "prompt" in record:
        prompt = checked_text(record["prompt"], f"{where}: prompt")
        return ({"role": "user", "content": prompt},)
    return tuple(waiting({"messages": record["messages"]}, where)["messages"][:-1])
