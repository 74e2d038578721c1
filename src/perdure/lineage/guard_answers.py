"""The answers to the rows of the guard that the stages of a lineage store."""

from typing import Any

from perdure.lineage.lineage import Lineage
from perdure.measure.guard.kept import Kept, read_answers
from perdure.models.layout import GUARD


def stored_guard_answers(lineage: Lineage, entry: dict[str, Any]) -> dict[str, Kept]:
    """Return the answers to the guard's rows that a stage stores, by the rows' ids."""
    file = lineage.file(entry, GUARD)
    return read_answers(file) if file else {}
