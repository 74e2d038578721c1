r"""Templates that make rows from a table's columns.

    prompt: "Text: {text}\nSentiment:"
    completion: "{label}"
    labels: [negative, positive]

A field is the plain name of a column; nothing is looked up inside the column's value. `{{` and `}}`
stand for braces. `labels` gives names to the integers in the completion's columns, as a list that
counts from 0 or as a mapping.
"""

import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from perdure.data.rows import Row, as_row
from perdure.errors import PerdureError, nearest


Part = tuple[str, str | None]  # literal text and the column that follows it
KEYS = ("prompt", "completion", "labels")


@dataclass(frozen=True)
class Templates:
    """The templates of a prompt and a completion.

    Args:
        prompt: the template of the prompt, parsed.
        completion: the template of the completion, parsed.
        labels: the user's names for the integers in the completion's columns, as text to text.
        names: the dataset's own label names, by column.
    """

    prompt: tuple[Part, ...]
    completion: tuple[Part, ...]
    labels: dict[str, str] = field(default_factory=dict)
    names: Mapping[str, list[str]] = field(default_factory=dict)

    def columns(self) -> list[str]:
        """Return the columns that the templates use, each once."""
        parts = self.prompt + self.completion
        return list(dict.fromkeys(column for _, column in parts if column is not None))

    def row(self, raw: Any, where: str) -> Row:
        """Make the row of one record; `where` begins the error line.

        Raises:
            PerdureError: a column is missing or holds neither text nor a number, a label has no
                name, or the prompt or the completion is empty.
        """
        if not isinstance(raw, Mapping):
            raise PerdureError(f"{where}: expected an object with columns, got {raw!r}")
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
        """Return the correct answers if the completion is one column that holds a list of them.

        In SQuAD the list is inside the column, under `text`.
        """
        parts = [column for text, column in self.completion if text or column is not None]
        value = raw[parts[0]] if len(parts) == len(self.completion) == 1 and parts[0] else None
        if isinstance(value, Mapping):
            value = value.get("text")
        return value if isinstance(value, list) else []

    def _value(self, column: str, value: Any, labelled: set[str | None], where: str) -> str:
        # An empty cell, which pandas writes as NaN. `as_row` refuses an empty prompt or completion.
        if value is None or value != value:
            return ""
        if self.labels and column in labelled:
            # A table with an empty cell in a column of integers may write them as 1.0.
            whole = re.sub(r"^(-?\d+)\.0+$", r"\1", str(value))
            name = self.labels.get(str(value), self.labels.get(whole))
            if name is None:
                hint = nearest(str(value), self.labels)
                raise PerdureError(f"{where}: {column} {value!r} has no name in labels; {hint}")
            return name
        if column in self.names:
            if not 0 <= value < len(self.names[column]):  # -1 is how the hub writes "not labelled"
                raise PerdureError(f"{where}: {column} is {value}, no label; choose another split")
            return self.names[column][value]
        if not isinstance(value, str | int | float):
            raise PerdureError(
                f"{where}: column {column!r} holds a {type(value).__name__}; "
                "templates take text and numbers"
            )
        return str(value)


def make_templates(settings: Mapping[str, Any], where: str) -> Templates | None:
    """Parse the templates among the keys of `settings`; return None if there are none.

    Raises:
        PerdureError: one template is given without the other, a field is not a plain column name,
            or the labels are not a list of names or a mapping to names.
    """
    if not any(settings.get(key) for key in KEYS):
        return None
    for key in ("prompt", "completion"):
        if not isinstance(settings.get(key), str):
            raise PerdureError(
                f'{where}: prompt and completion go together, such as prompt: "{{text}}", '
                f'completion: "{{label}}"; {key} is {settings.get(key)!r}'
            )
    return Templates(
        prompt=tuple(_parts(settings["prompt"], f"{where}: prompt")),
        completion=tuple(_parts(settings["completion"], f"{where}: completion")),
        labels=make_labels(settings.get("labels"), where),
    )


def make_labels(labels: Any, where: str) -> dict[str, str]:
    """Convert the setting `labels` to a mapping of text to text, which JSON preserves.

    Raises:
        PerdureError: it is not a list or a mapping, or YAML did not read a name as text.
    """
    if labels is not None and not isinstance(labels, Mapping | list | tuple):
        raise PerdureError(
            f"{where}: labels takes a list of names or a mapping to names, got {labels!r}"
        )
    pairs = list(labels.items() if isinstance(labels, Mapping) else enumerate(labels or ()))
    for _, name in pairs:
        if not isinstance(name, str):
            raise PerdureError(f"{where}: labels: {name!r} is not text; put the names in quotes")
    return {str(value): name for value, name in pairs}


def check_columns(wanted: Iterable[str], columns: Iterable[Any], where: str) -> None:
    """Check that the wanted columns exist.

    Raises:
        PerdureError: one does not exist; the line suggests the nearest name.
    """
    valid = [str(column) for column in columns]
    for column in wanted:
        if column not in valid:
            raise PerdureError(f"{where}: no column {column!r}; {nearest(column, valid)}")


def _parts(template: str, where: str) -> Iterable[Part]:
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise PerdureError(f"{where}: {error}; write a literal brace twice") from error
    for text, column, spec, conversion in parsed:
        plain = column is None or (column.strip() and not set(column) & set(".[]"))
        if not plain or spec or conversion:
            more = (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise PerdureError(
                f"{where}: {{{column}{more}}} is no plain column name, as a field must be"
            )
        yield text, column
