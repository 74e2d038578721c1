"""Probes: rows on which a model is measured again and again, some with a foil, a wrong answer.

{"prompt": ..., "completion": ..., "foil": ...}     the foil is an answer
{"messages": [...], "foil": ...}
{"text": ..., "foil": ...}                          the foil is a text
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.data.rows import Row, answer, answered, as_row, checked_text, in_place_of, read_rows
from perdure.errors import PerdureError


@dataclass(frozen=True)
class Probe:
    """A row, and the same row with the foil as its answer."""

    row: Row
    foil: Row | None = None


def read_probes(source: str | Path | Sequence[Mapping[str, Any]]) -> tuple[list[Probe], str]:
    """Read probes from a file or a list of rows; return them and their name for error lines.

    Raises:
        PerdureError: as for `read_rows`, a foil is not text, or only some of the rows are texts.
    """
    if isinstance(source, str | Path):
        fields, where = read_rows(source, _as_probe), str(source)
    else:
        where = "the rows"
        fields = [_as_probe(raw, f"{where}, row {number}") for number, raw in enumerate(source, 1)]
        if not fields:
            raise PerdureError(f"{where}: the list is empty; give at least one row")
    probes = [Probe(**row_and_foil) for row_and_foil in fields]
    of_text = ["text" in probe.row for probe in probes]
    if len(set(of_text)) > 1:
        raise PerdureError(
            f"{where}, row {of_text.index(not of_text[0]) + 1}: rows of text cannot be mixed with "
            "others, because other tokens count in them; put them in separate files"
        )
    return probes, where


def _as_probe(raw: Any, where: str) -> dict[str, Any]:
    row, foil = as_row(raw, where), raw.get("foil")
    if foil is None:
        return {"row": row, "foil": None}
    foil = checked_text(foil, f"{where}: foil")
    if "text" in row:
        return {"row": row, "foil": {"text": foil}}
    if not answer(row).strip():
        raise PerdureError(f"{where}: foil needs an answer in words, and the row's calls a tool")
    return {"row": row, "foil": answered(row, in_place_of(answer(row), foil))}
