"""The guard's answers at a stage, as they are kept in its folder.

The base's answers are among them, with their token ids, so that later stages need not ask the base
the same rows again.
"""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perdure.errors import PerdureError, one_line
from perdure.measure.guard.rows import GuardRow
from perdure.measure.predict import Generated
from perdure.seeds import digest


@dataclass(frozen=True)
class Kept:
    """What is kept of one row.

    Args:
        id: the row's name.
        skill: what the row asks for.
        prompt: the row's last message.
        base: the base's answer.
        answer: the text of the stage's answer, None if only the base was asked.
        base_passes: whether the base's answer passes the row's checks.
        passes: whether the stage's answer does.
    """

    id: str
    skill: str
    prompt: str
    base: Generated
    answer: str | None
    base_passes: bool
    passes: bool


def question_key(row: GuardRow, in_template: bool, system: str | None, max_new_tokens: int) -> str:
    """Return a hash of everything that decides the base's answer to a row, but the base."""
    return digest(row.messages, in_template, system, max_new_tokens)[:16]


def write_answers(file: Path, answers: Mapping[str, Kept]) -> None:
    """Write what is kept of each row, by its key, as compressed JSON."""
    plain = {key: asdict(kept) for key, kept in answers.items()}
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    file.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))  # the same bytes every time


def read_answers(file: Path) -> dict[str, Kept]:
    """Read what `write_answers` wrote; a stage without the file has no answers.

    Raises:
        PerdureError: the file is damaged.
    """
    if not file.is_file():
        return {}
    try:
        plain: dict[str, Any] = json.loads(gzip.decompress(file.read_bytes()))
        return {
            key: Kept(**{**kept, "base": Generated(**kept["base"])}) for key, kept in plain.items()
        }
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        AttributeError,
        TypeError,
        KeyError,
    ) as error:
        raise PerdureError(
            f"{file}: damaged ({one_line(error)}); restore it from a copy"
        ) from error


def fallen_and_risen(before: Mapping[str, Kept], now: Mapping[str, Kept]) -> tuple[int, int]:
    """Return how many rows passed before and fail now, and the reverse, of those asked twice."""
    pairs: Sequence[tuple[bool, bool]] = [
        (before[key].passes, kept.passes) for key, kept in now.items() if key in before
    ]
    return sum(old and not new for old, new in pairs), sum(new and not old for old, new in pairs)
