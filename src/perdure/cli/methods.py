"""`perdure methods`: what can stand under `method:`."""

import inspect
import textwrap
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, grid, print_json, print_parts, quiet
from perdure.reporting.measured import measured_rows, setting


@command(api.methods, name="[NAME]")
def methods(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure methods recurrent_kif"""
    quiet()
    described = api.methods(**arguments)
    if as_json:
        print_json(described)
    elif arguments:
        print_parts(_one(described[0]))
    else:
        print_parts(_all(described))


def _all(described: list[dict[str, Any]]) -> list[RenderableType]:
    table = grid("family", "method", "what it does", "paper")
    for method in sorted(described, key=lambda method: method["family"]):
        cells = (method["family"], method["name"], method["summary"], method["paper"] or "-")
        table.add_row(*map(Text, cells))
    return [table, Text("more of one of them:  perdure methods NAME")]


def _one(described: dict[str, Any]) -> list[RenderableType]:
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


def _measured(found: list[dict[str, Any]]) -> list[RenderableType]:
    if not found:
        return []
    head, *rows = measured_rows(found)
    table = grid(*head)
    for row in rows:
        table.add_row(*map(Text, row))
    return [Text(f"\nMeasured beside sequential: {setting()}"), table]


def _presets(name: str, method: Any) -> list[RenderableType]:
    presets = method.presets
    if not presets:
        return []
    table = grid("keyword", *presets)
    for row in preset_rows(method):
        table.add_row(*map(Text, row))
    use = f"in a YAML: method: {{{name}: {{preset: {next(iter(presets))}}}}}"
    return [
        Text(
            "Presets; * marks what the source leaves open; in [], what it trains with, not set here"
        ),
        table,
        Text("\n".join(f"* {note}" for note in preset_notes(method))),
        Text(""),
        Text(use),
    ]


def preset_rows(method: Any) -> list[list[str]]:
    """A keyword and its value in each preset, a row each, then `[training.KEY]` of the sources."""
    presets, opened, rows = method.presets, method.left_open, []
    for key in next(iter(presets.values())):
        marks = (" *" if key in opened.get(preset, {}) else "" for preset in presets)
        cells = zip(presets.values(), marks, strict=True)
        rows.append([key, *(value(keywords[key]) + mark for keywords, mark in cells)])
    trained = [method.trained_with.get(preset, {}) for preset in presets]
    for key in dict.fromkeys(key for settings in trained for key in settings):
        cells = (value(settings[key]) if key in settings else "not given" for settings in trained)
        rows.append([f"[training.{key}]", *cells])
    return rows


def preset_notes(method: Any) -> list[str]:
    """Why a preset's value that its source leaves open was chosen."""
    opened = method.left_open.items()
    return [f"{preset}, {key}: {why}" for preset, left in opened for key, why in left.items()]


def value(given: Any) -> str:
    """A keyword's value as people write it."""
    if isinstance(given, dict):
        return ", ".join(f"{key} {value(inner)}" for key, inner in given.items())
    if isinstance(given, list | tuple):
        return f"({', '.join(map(value, given))})"
    return "null" if given is None else str(given)
