r"""Rows made from a table's columns: `prompt` and `completion` as templates over their names.

    prompt: "Text: {text}\nSentiment:"
    completion: "{label}"
    labels: [negative, positive]

A field is a column's plain name, nothing is looked up inside its value; `{{` and `}}` are braces.
`labels` names the integers of the completion's columns: a list from 0 on, or a mapping.
"""

import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engram.data.rows import Row, as_row
from engram.errors import EngramError, nearest


Part = tuple[str, str | None]  # literal text and the column after it
KEYS = ("prompt", "completion", "labels")


@dataclass(frozen=True)
class Templates:
    """A prompt and a completion over columns; `names` are those of the dataset's own labels."""

    prompt: tuple[Part, ...]
    completion: tuple[Part, ...]
    labels: dict[str, str] = field(default_factory=dict)
    names: Mapping[str, list[str]] = field(default_factory=dict)

    def columns(self) -> list[str]:
        parts = self.prompt + self.completion
        return list(dict.fromkeys(column for _, column in parts if column is not None))

    def row(self, raw: Any, where: str) -> Row:
        """The row of one record; `where` begins the error line.

        Raises:
            EngramError: a column is missing or holds neither text nor a number, a label has no
                name, or prompt or completion come out empty.
        """
        if not isinstance(raw, Mapping):
            raise EngramError(f"{where}: expected an object with columns, got {raw!r}")
        check_columns(self.columns(), raw, where)
        labelled = {column for _, column in self.completion}

        def fill(parts: tuple[Part, ...]) -> str:
            return "".join(
                text if column is None else text + self._value(column, raw[column], labelled, where)
                for text, column in parts
            )

        completion = self._answers(raw) or fill(self.completion)
        return as_row({"prompt": fill(self.prompt), "completion": completion}, where)

    def _answers(self, raw: Mapping[str, Any]) -> list[Any]:
        """The texts of a completion that is one column with a list of right answers.

        SQuAD has them one level down, under `text`.
        """
        parts = [column for text, column in self.completion if text or column is not None]
        value = raw[parts[0]] if len(parts) == len(self.completion) == 1 and parts[0] else None
        if isinstance(value, Mapping):
            value = value.get("text")
        return value if isinstance(value, list) else []

    def _value(self, column: str, value: Any, labelled: set[str | None], where: str) -> str:
        if value is None:  # an empty cell; a row that is empty altogether is refused as any other
            return ""
        if self.labels and column in labelled:
            # A table that has lost a cell of a column of integers writes them as 1.0.
            whole = re.sub(r"^(-?\d+)\.0+$", r"\1", str(value))
            name = self.labels.get(str(value), self.labels.get(whole))
            if name is None:
                hint = nearest(str(value), self.labels)
                raise EngramError(f"{where}: {column} {value!r} has no name in labels; {hint}")
            return name
        if column in self.names:
            if not 0 <= value < len(self.names[column]):  # -1 is how the hub writes "not labelled"
                raise EngramError(f"{where}: {column} is {value}, no label; take another split")
            return self.names[column][value]
        if not isinstance(value, str | int | float):
            raise EngramError(
                f"{where}: column {column!r} holds a {type(value).__name__}; "
                "templates take text and numbers"
            )
        return str(value)


def make_templates(given: Mapping[str, Any], where: str) -> Templates | None:
    """The templates among the keys of `given`, or None if there are none.

    Raises:
        EngramError: one template without the other, a field that is no plain name, or labels that
            are no list or mapping of names.
    """
    if not any(given.get(key) for key in KEYS):
        return None
    for key in ("prompt", "completion"):
        if not isinstance(given.get(key), str):
            raise EngramError(
                f'{where}: prompt and completion go together, such as prompt: "{{text}}", '
                f'completion: "{{label}}"; {key} is {given.get(key)!r}'
            )
    prompt, completion = (
        tuple(_parts(given[key], f"{where}: {key}")) for key in ("prompt", "completion")
    )
    return Templates(prompt, completion, make_labels(given.get("labels"), where))


def make_labels(given: Any, where: str) -> dict[str, str]:
    """Labels as a mapping of text to text, as JSON keeps it.

    Raises:
        EngramError: no list or mapping, or a name that YAML read as something else than text.
    """
    pairs = given.items() if isinstance(given, Mapping) else enumerate(given or ())
    if given is not None and not isinstance(given, Mapping | list | tuple):
        raise EngramError(f"{where}: labels is a list of names or a mapping to them, got {given!r}")
    pairs = list(pairs)
    for _, name in pairs:
        if not isinstance(name, str):
            raise EngramError(f"{where}: labels: {name!r} is not text; put the names in quotes")
    return {str(value): name for value, name in pairs}


def check_columns(wanted: Iterable[str], columns: Iterable[Any], where: str) -> None:
    """Raises EngramError with the nearest name for the first wanted column that is not there."""
    valid = [str(column) for column in columns]
    for column in wanted:
        if column not in valid:
            raise EngramError(f"{where}: no column {column!r}; {nearest(column, valid)}")


def _parts(template: str, where: str) -> Iterable[Part]:
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise EngramError(f"{where}: {error}; a brace itself is written twice") from error
    for text, column, spec, conversion in parsed:
        plain = column is None or (column.strip() and not set(column) & set(".[]"))
        if not plain or spec or conversion:
            more = (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise EngramError(
                f"{where}: {{{column}{more}}} is no plain column name; braces hold nothing else"
            )
        yield text, column
