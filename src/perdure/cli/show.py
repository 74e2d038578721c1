"""`perdure show`: one stage."""

from typing import Any

from rich.text import Text

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import Json, counted, grid, print_json, scores_table, stdout
from perdure.reporting.results import method_name


@command(api.show)
def show(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure show my-model --stage 1"""
    known = api.show(**arguments)
    if as_json:
        print_json(known)
        return
    table = grid("", "")
    table.show_header = False
    for name, value in _lines(known):
        table.add_row(name, Text(value))
    stdout().print(table)
    if known.get("scores"):
        stdout().print(scores_table(known["scores"]))


def _lines(known: dict[str, Any]) -> list[tuple[str, str]]:
    state = "the newest" if known["newest"] else "active" if known["active"] else "reverted"
    lines = [("stage", f"{known['stage']} ({state})")]
    if known["stage"] == 0:
        kept = [("adapter", known["folder"])] if "folder" in known else []
        return [*lines, ("base", _base(known["base"])), *kept, *_loads(known)]
    task, settings = known["task"], known["settings"]
    lines += [("task", task["name"]), ("when", known["date"] or "-")]
    if known["seconds"]:
        took = ", ".join(f"{k} {v:.1f} s" for k, v in known["seconds"].items() if k != "loss")
        lines += [
            ("took", f"{took}; {counted(known['steps'], 'step')}" if known["steps"] else took)
        ]
    lines += [("method", method_name(known["method"])), ("mode", known["mode"])]
    if known["rehearsed"]:
        rows, mean, most = (known["rehearsed"][key] for key in ("rows", "mean", "most"))
        told = (
            f"{counted(rows, 'remembered row')}, each {mean:.1f} times on average, at most {most}"
        )
        lines += [("rehearsed", told)]
    lines += [(split, _rows(task[split])) for split in ("train", "test") if split in task]
    if "general" in known:
        lines += [("general", _rows(known["general"]))]
    lines += [("remembers", counted(known["remembered_rows"], "row"))]
    lines += [("training", _pairs(settings["training"]))]
    if settings["adapter"] is not None:
        lines += [("adapter", _pairs(settings["adapter"]))]
    if settings["quantization"]:
        lines += [("quantised", _pairs(settings["quantization"]))]
    lines += [("seed", f"{settings['seed']}, {counted(settings['threads'], 'thread')}")]
    lines += [("made with", _pairs(known["versions"]))]
    return [*lines, *_loads(known)]


def _loads(known: dict[str, Any]) -> list[tuple[str, str]]:
    """What is active in this stage, from below: one adapter on the base, or whole weights."""
    folder, base = known.get("folder"), _base(known["base"])
    if folder is None:
        return [("to load", base)]
    place = f"{known['lineage']}/{folder}"
    line = " > ".join(["base", *map(str, known["line_of"][1:])])
    if known.get("kind") == "weights":
        what = (
            place if known["weights_kept"] else "its weights were removed, only its scores remain"
        )
        return [("to load", f"{what} (whole weights)"), ("history", line)]
    return [
        ("to load", f"{base}, and on it the one adapter {place}"),
        ("history", f"{line}; that adapter holds them all, nothing is stacked"),
    ]


def _base(base: dict[str, Any]) -> str:
    return base["name"] + (f" at {base['revision']}" if base.get("revision") else "")


def _rows(split: dict[str, Any]) -> str:
    source = split["source"] or {"made": "in Python"}
    return f"{counted(split['rows'], 'row')}, {_pairs(source)}, sha256 {split['sha256'][:12]}"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items() if v is not None)
