"""`engram methods`: what can stand under `method:`."""

import inspect
import textwrap
import types
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.console import RenderableType
from rich.text import Text

from engram.cli.output import Json, grid, print_json, quiet, stdout
from engram.reporting.measured import measured, measured_rows, setting


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One method, with all there is to it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the methods, or tell all about one: what it does, its keywords, its presets.

    Example: engram methods recurrent_kif
    """
    quiet()
    from engram.methods import names

    described = [describe(found) for found in ([name] if name else names())]
    if as_json:
        print_json(described)
    elif name:
        _show(_one(described[0]))
    else:
        _show(_all(described))


def describe(name: str) -> dict[str, Any]:
    """A method as `--json` prints it; raises EngramError when there is none of that name."""
    from engram.methods import find, keywords

    method = find(name)
    return {
        "name": name,
        "family": method.family,
        "summary": (inspect.getdoc(method) or "").partition("\n\n")[0].replace("\n", " "),
        "paper": method.paper,
        "keywords": [
            {"name": key, "type": spell(found.annotation), "default": found.default}
            for key, found in keywords(name).items()
        ],
        "measured": measured(name),
    }


def spell(kind: Any) -> str:
    """A keyword's type as people write it: `float | null`, or the words to choose from."""
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if isinstance(kind, types.UnionType):
        return " | ".join(map(spell, get_args(kind)))
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind))


def _show(parts: list[RenderableType]) -> None:
    for part in parts:
        stdout().print(part)


def _all(described: list[dict[str, Any]]) -> list[RenderableType]:
    table = grid("family", "method", "what it does", "paper")
    for method in sorted(described, key=lambda method: method["family"]):
        cells = (method["family"], method["name"], method["summary"], method["paper"] or "-")
        table.add_row(*map(Text, cells))
    return [table, Text("more of one of them:  engram methods NAME")]


def _one(described: dict[str, Any]) -> list[RenderableType]:
    from engram.methods import find

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
