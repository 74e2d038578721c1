"""`perdure methods`: list the methods, or describe one of them."""

import inspect
import textwrap
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, grid, print_described, quiet
from perdure.reporting.measured import measured_rows, setting


CHOICES_NOTE = (
    "OP is the mean score of all tasks at the end; KL is that from the base, in nats per token. "
    "An interval is Student's 95 % over the orders: (noise) says that it contains 0, and * that "
    "the difference survives Holm's correction. docs/choosing.md has the numbers beside these, and "
    "says what they do not tell; they are in benchmarks/results/FILE.json of the source."
)


@command(api.methods, name="[NAME]")
def methods(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure methods recurrent_kif"""
    quiet()
    described = api.methods(**arguments)
    if arguments.get("recommend"):
        print_described(described, as_json, one=False, description=_description, table=_choices)
        return
    print_described(
        described, as_json, one="name" in arguments, description=_description, table=_table
    )


def _table(described: list[dict[str, Any]]) -> list[RenderableType]:
    table = grid("family", "method", "what it does", "paper")
    for method in sorted(described, key=lambda method: method["family"]):
        presets = f" Presets: {', '.join(method['presets'])}." if method["presets"] else ""
        summary = method["summary"] + presets
        cells = (method["family"], method["name"], summary, method["paper"] or "-")
        table.add_row(*map(Text, cells))
    return [table, Text("details of a method:  perdure methods NAME")]


def _choices(recommended: list[dict[str, Any]]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for kind, entries in groupby(recommended, key=lambda entry: entry["kind"]):
        table = grid("you have", "take", "measured", "file")
        for entry in entries:
            names = ", ".join(Path(file).stem for file in entry["files"])
            table.add_row(*map(Text, (entry["when"], entry["take"], entry["number"], names)))
        parts += [Text(kind, style="bold"), table]
    return [*parts, Text(CHOICES_NOTE)]


def _description(described: dict[str, Any]) -> list[RenderableType]:
    from perdure.methods import find

    method = find(described["name"])
    table = grid("keyword", "type", "default")
    for keyword in described["keywords"]:
        table.add_row(keyword["name"], Text(keyword["type"]), Text(value(keyword["default"])))
    head = f"{described['name']} ({described['family']})  {described['paper'] or ''}".rstrip()
    about = textwrap.indent(inspect.getdoc(method) or "", "  ")
    return [
        Text(head, style="bold"),
        Text(f"\n{about}"),
        table,
        *_presets(described["name"], method),
        *_measured(described["measured"]),
    ]


def _measured(measurements: list[dict[str, Any]]) -> list[RenderableType]:
    if not measurements:
        return []
    head, *rows = measured_rows(measurements)
    table = grid(*head)
    for row in rows:
        table.add_row(*map(Text, row))
    return [Text(f"\nMeasurements: {setting()}"), table]


def _presets(name: str, method: Any) -> list[RenderableType]:
    presets = method.presets
    if not presets:
        return []
    table = grid("keyword", *presets)
    for row in preset_rows(method):
        table.add_row(*map(Text, row))
    use = f"to use one in a YAML: method: {{{name}: {{preset: {next(iter(presets))}}}}}"
    return [
        Text(
            "Presets; *: left open by the source; in []: its training settings, which a preset "
            "does not set"
        ),
        table,
        Text("\n".join(f"* {note}" for note in preset_notes(method))),
        Text(""),
        Text(use),
    ]


def preset_rows(method: Any) -> list[list[str]]:
    """A row for each keyword with its value in each preset, then the sources' `[training.KEY]`."""
    presets, left_open, rows = method.presets, method.left_open, []
    for key in next(iter(presets.values())):
        marks = (" *" if key in left_open.get(preset, {}) else "" for preset in presets)
        cells = zip(presets.values(), marks, strict=True)
        rows.append([key, *(value(keywords[key]) + mark for keywords, mark in cells)])
    trainings = [method.trained_with.get(preset, {}) for preset in presets]
    for key in dict.fromkeys(key for training in trainings for key in training):
        cells = (value(training[key]) if key in training else "not given" for training in trainings)
        rows.append([f"[training.{key}]", *cells])
    return rows


def preset_notes(method: Any) -> list[str]:
    """The reasons for the values that the sources of the presets leave open."""
    return [
        f"{preset}, {key}: {reason}"
        for preset, reasons in method.left_open.items()
        for key, reason in reasons.items()
    ]


def value(setting: Any) -> str:
    """The value of a keyword as text."""
    if isinstance(setting, dict):
        return ", ".join(f"{key} {value(inner)}" for key, inner in setting.items())
    if isinstance(setting, list | tuple):
        return f"({', '.join(map(value, setting))})"
    return "null" if setting is None else str(setting)
