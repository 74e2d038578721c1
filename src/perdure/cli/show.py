"""`perdure show`: show one stage."""

from typing import Any

from rich.console import RenderableType
from rich.text import Text

from perdure import api
from perdure.cli.from_api import Arguments, command
from perdure.cli.output import (
    Json,
    counted,
    grid,
    print_json,
    scores_table,
    shortened,
    stderr_line,
    stdout,
    verdict_text,
)
from perdure.lineage.dropped import how_to_restore
from perdure.lineage.history import COMPACT
from perdure.lineage.settings import in_words
from perdure.reporting.interference import interference_of
from perdure.reporting.results import method_in_words


LONGEST_CURVE = 8  # the most points of a dev curve that are shown, beside the best and the last


@command(api.show)
def show(arguments: Arguments, as_json: Json = False) -> None:
    """Example: perdure show my-model --stage 1"""
    stage = api.show(**arguments, say=stderr_line)
    if as_json:
        print_json(stage)
        return
    table = grid("", "")
    table.show_header = False
    for name, value in _lines(stage):
        table.add_row(name, Text(value))
    stdout().print(table)
    if stage.get("scores"):
        stdout().print(scores_table(stage["scores"], stage["sampled"]))
    if stage.get("verdict"):
        stdout().print(verdict_text(stage["verdict"], stage["stage"], stage["lineage"]))
    if "flips" in stage:
        stdout().print(_flips(stage["flips"]))


def _flips(changed: list[dict[str, Any]]) -> RenderableType:
    """A table of the test rows whose score changed; `score` is before -> after."""
    if not changed:
        return Text("no test row has another score than before")
    table = grid("task", "row", "question", "right", "before", "after", "score", right=["row"])
    for record in changed:
        texts = (record[key] or "-" for key in ("question", "right", "before", "after"))
        cells = (Text(shortened(text)) for text in texts)
        scores = f"{record['score_before']:g} -> {record['score_after']:g}"
        style = "red" if record["score_after"] < record["score_before"] else ""
        table.add_row(Text(record["task"]), str(record["row"]), *cells, scores, style=style)
    return table


def _lines(stage: dict[str, Any]) -> list[tuple[str, str]]:
    state = "the newest" if stage["newest"] else "active" if stage["active"] else "reverted"
    lines = [("stage", f"{stage['stage']} ({state})")]
    if stage["stage"] == 0:
        adapter = [("adapter", stage["folder"])] if "folder" in stage else []
        return [*lines, ("base", _base(stage["base"])), *adapter, *_loads(stage)]
    task, settings = stage["task"], stage["settings"]
    lines += [("task", task["name"]), ("when", stage["date"] or "-")]
    if stage["seconds"]:
        took = ", ".join(f"{k} {v:.1f} s" for k, v in stage["seconds"].items() if k != "loss")
        if stage["steps"]:
            took += f"; {counted(stage['steps'], 'step')}"
        lines += [("took", took)]
    lines += [("method", method_in_words(stage["method"])), ("mode", stage["mode"])]
    if rehearsed := stage["rehearsed"]:
        rows = counted(rehearsed["rows"], "remembered row")
        mean, most = rehearsed["mean"], rehearsed["most"]
        times = f"each {mean:.1f} times on average, at most {most}" if most else "never used"
        lines += [("rehearsed", f"{rows}, {times}")]
    splits = [split for split in ("train", "dev", "test") if task.get(split, {}).get("rows")]
    lines += [(split, _rows(task[split])) for split in splits]
    if stage["dev"]:
        lines += [("dev curve", _curve(stage["dev"]))]
    if "general" in stage:
        lines += [("general", _rows(stage["general"]))]
    lines += [("remembers", counted(stage["remembered_rows"], "row"))]
    if stage["state"]:
        numbers = (f"{name} {value:g}" for name, value in stage["state"].items())
        lines += [("state", ", ".join(numbers))]
    if stage["changed"]:
        lines += [("new settings", in_words(stage["changed"]))]
    elsewhere = stage["verb"] in ("adopt", "merge")
    lines += [("training", "elsewhere" if elsewhere else _pairs(settings["training"]))]
    if "rule" in stage:
        (rule, keywords), count = next(iter(stage["rule"].items())), len(stage["history"])
        lines += [("rule", f"{rule} ({_pairs(keywords)}); {counted(count, 'checkpoint')} so far")]
        if stage["weight"] is not None:
            lines += [("weight", f"{stage['weight']:g}")]
        treatments = [pair for one in stage.get("after", ()) for pair in one.items()]
        lines += [("treated by", f"{name} ({_pairs(own)})") for name, own in treatments]
        if "vocabulary" in stage:
            lines += [("vocabulary", _aligned(stage["vocabulary"]))]
        if found := interference_of(stage):
            lines += [("interference", found.words), ("by layer", found.by_layer)]
        if "trials" in stage:
            lines += [("searched", _trials(stage["trials"]))]
        if "undone" in stage:
            lines += [("took out", f"what was merged in stage {stage['undone']}")]
    if settings["adapter"] is not None:
        lines += [("adapter", _pairs(settings["adapter"]))]
    if settings["quantization"]:
        lines += [("quantised", _pairs(settings["quantization"]))]
    lines += [("seed", f"{settings['seed']}, {counted(settings['threads'], 'thread')}")]
    lines += [("made with", _pairs(stage["versions"]))]
    return [*lines, *_loads(stage)]


def _aligned(found: dict[str, Any]) -> str:
    """How the tokens of a checkpoint were aligned with those of the base."""
    return (
        f"aligned by token: {found['shared']} in both, {found['unchanged']} unchanged, "
        f"{found['own']} left out"
    )


def _trials(trials: list[dict[str, Any]]) -> str:
    """What a search for a weight has tried: `weight 1: lost; weight 0.5: within the gate`."""
    return "; ".join(
        f"weight {trial['weight']:g}: {', '.join(trial['reasons']) or 'within the gate'}"
        for trial in trials
    )


def _curve(dev: dict[str, Any]) -> str:
    """What was measured on dev rows: `loss 1.25 at step 8, 0.98 at 16 (the best), 1.02 at 24`.

    Of a long curve, the best point, the last one and some of the others are shown.
    """
    metric, curve = dev["metric"], dev["curve"]
    every = -(-len(curve) // LONGEST_CURVE)
    shown = [
        point
        for number, point in enumerate(curve, start=1)
        if number % every == 0 or point["step"] == dev["best"] or number == len(curve)
    ]
    texts = []
    for point in shown:
        value = "not finite" if point[metric] is None else f"{point[metric]:.3g}"
        step = f"step {point['step']}" if point is shown[0] else str(point["step"])
        remark = " (the best)" if point["step"] == dev["best"] else ""
        texts.append(f"{value} at {step}{remark}")
    last = curve[-1]["step"]
    ending = f"; stopped at step {last}" if dev["stopped"] else ""
    kept = f"; the weights are those of step {dev['weights_of']}"
    return f"{metric} {', '.join(texts)}{ending}{kept if dev['weights_of'] != last else ''}"


def _loads(stage: dict[str, Any]) -> list[tuple[str, str]]:
    """What to load for this stage: the base, with one adapter on it, or whole weights."""
    folder, base = stage.get("folder"), _base(stage["base"])
    if folder is None:
        return [("to load", base)]
    path = f"{stage['lineage']}/{folder}"
    history = " > ".join(["base", *map(str, stage["line_of"][1:])])
    if not stage["weights_kept"]:
        by_compact = stage["weights_dropped_by"] == COMPACT
        how = "dropped by `perdure compact`" if by_compact else "removed, only its scores remain"
        restore = how_to_restore(stage["lineage"], stage["stage"], stage["verb"])
        return [("to load", f"its weights were {how}; {restore}"), ("history", history)]
    if stage.get("kind") == "weights":
        return [("to load", f"{path} (whole weights)"), ("history", history)]
    if stage["within"] is not None:
        number, lineage = stage["stage"], stage["lineage"]
        within = (
            f"its adapter is within that of stage {stage['within']}; `perdure export {lineage} OUT "
            f"--adapter --stage {number}` writes it into a folder of its own"
        )
        return [("to load", within), ("history", history)]
    return [
        ("to load", f"{base} with the adapter {path}"),
        ("history", f"{history}; the adapter contains all these stages"),
    ]


def _base(base: dict[str, Any]) -> str:
    return base["name"] + (f" at {base['revision']}" if base.get("revision") else "")


def _rows(split: dict[str, Any]) -> str:
    source = split["source"] or {"made": "in Python"}
    return f"{counted(split['rows'], 'row')}, {_pairs(source)}, sha256 {split['sha256'][:12]}"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items() if v is not None)
