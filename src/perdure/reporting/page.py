"""The report as one HTML file that needs no other files."""

import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from perdure.reporting import figures
from perdure.reporting.groups import MEASURES, MethodRuns, Set, sets
from perdure.reporting.importance import Identified
from perdure.reporting.interference import MEANING, Interference
from perdure.reporting.read import DevCurve, Run


# The words of a lineage's verdict, beside its colour.
WORDS = {
    "lost": "lost",
    "noise": "within noise",
    "kept": "nothing lost",
    "unmeasured": "not measured",
}
SIDES = ("new task", "old tasks")
CASES = ("both", "new only", "old only", "neither")
OPENED = 4  # the number of methods whose first lineage is unfolded
DRAWN = 6  # the most methods in one panel, as more lines are hard to distinguish


def html(runs: Sequence[Run]) -> str:
    """Return the page about lineages.

    All text that comes from a lineage is escaped by the template or by `svg.tag`.
    """
    environment = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "seconds": seconds,
        "short": short,
        "plain": plain,
        "code_words": code_words,
        "drawn_width": drawn_width,
    }
    run_sets = sets(runs)
    return environment.get_template("page.html.jinja").render(
        style=Markup(_file("page.css")),
        runs=runs,
        sets=[(run_set, _figures(run_set)) for run_set in run_sets],
        empty=[run for run in runs if not run.stages],
        judged=[run for run in runs if run.stages],
        words=WORDS,
        measures=MEASURES,
        number=number,
        signed=signed,
        cases=CASES,
        trends=_trends,
        together=together,
        heats=_heats,
        shares=_shares,
        dev_curves=_dev_curves,
        profiles=_profiles,
        interference_means=MEANING,
        opened=OPENED,
        title=", ".join(_names(run_sets)) or "nothing learned yet",
    )


def number(value: float | None) -> str:
    """Format a number with three decimals, or as `-` if it is unknown."""
    return "-" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Format a number with a sign and three decimals; its minus is as wide as a plus."""
    return "-" if value is None else f"{value:+.3f}".replace("-", "\u2212")


def seconds(value: float | None) -> str:
    """Format seconds with one decimal, or with none from 1,000 on."""
    return "-" if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def short(value: float) -> str:
    """Format a score with up to three decimals."""
    return f"{value:.3g}"


def plain(value: Any) -> str:
    """Format a setting as in YAML, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 20)
    return text.removesuffix("\n").removesuffix("\n...")


def code_words(text: str) -> Markup:
    """Escape a text, and set what stands between backticks as code."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part)
        for i, part in enumerate(parts)
    )


def drawn_width(picture: Markup) -> float:
    """Return the width of a figure in pixels."""
    found = re.search(r'<svg[^>]* width="([\d.]+)"', picture)
    return float(found[1]) if found else 0.0


def together(run_set: Set) -> bool:
    """Return whether the methods of a set can be drawn in one panel per task."""
    return 1 < len(run_set.methods) <= DRAWN and len(run_set.orders) == 1


def _names(run_sets: Sequence[Set]) -> list[str]:
    names = list(dict.fromkeys(m.label for run_set in run_sets for m in run_set.methods))
    return names if len(names) < 4 else [f"{len(names)} methods"]


def _figures(run_set: Set) -> dict[str, Any]:
    """Return the pictures of a set, if it has several lineages to compare."""
    if len(run_set.runs) == 1:
        return {}
    rows = [
        (m.label, m.op, [v for run in m.runs if (v := run.numbers["overall"]) is not None])
        for m in run_set.methods
    ]
    pictures: dict[str, Any] = {"op": figures.whiskers("Overall performance by method", rows)}
    retention_points = _points(run_set, lambda run: run.numbers["learning_accuracy"])
    cost_points = _points(run_set, lambda run: run.seconds)
    if retention_points:
        pictures["kept"] = figures.scatter(
            "Plasticity against retention by method",
            retention_points,
            x_name="learned: right after learning →",
            y_name="↑ OP: at the end",
            diagonal=True,
        )
    if cost_points:
        pictures["cost"] = figures.scatter(
            "Training seconds against overall performance by method",
            cost_points,
            x_name="seconds of training →",
            y_name="↑ OP",
        )
    return pictures


def _points(run_set: Set, x_value: Callable[[Run], float | None]) -> list[figures.Point]:
    """Return a labelled point for the mean of each method, and small ones for its lineages."""
    points = []
    for i, method in enumerate(run_set.methods):
        values = [(x_value(run), run.numbers["overall"]) for run in method.runs]
        known = [(x, y) for x, y in values if x is not None and y is not None]
        if len(known) < len(values):
            continue
        if len(known) > 1:
            points += [figures.Point(x, y, shape=i) for x, y in known]
        x, y = (sum(column) / len(known) for column in zip(*known, strict=True))
        points.append(figures.Point(x, y, shape=i, label=method.label))
    return points


def _trends(methods: Sequence[MethodRuns] | Run) -> list[tuple[str, Markup]]:
    """Return a panel for each task, with a line for each method, or the line of one lineage."""
    matrix = methods.matrix if isinstance(methods, Run) else methods[0].runs[0].matrix
    panels = []
    for j, (task, learned_at) in enumerate(zip(matrix.tasks, matrix.learned_at, strict=True)):
        numbers = None
        if isinstance(methods, Run):
            lines = [("", [row[j] for row in matrix.rows])]
            numbers = [matrix.number(row) for row in range(len(matrix.rows))]
        else:
            lines = [(method.label, method.trend(task)) for method in methods]
        highest = max([1.0, *(v for _, values in lines for v in values if v is not None)])
        title = f"Score of {task} over the stages"
        panel = figures.trend(title, lines, learned_at, top_score=highest, numbers=numbers)
        panels.append((task, panel))
    return panels


def _heats(stages: Sequence[Identified]) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """Return two maps for each stage: the importance to the new task and to the old ones."""
    shares = [share for stage in stages for pair in stage.places.values() for share in pair]
    highest = max(shares, default=1.0)
    return [
        (stage.task, [(name, _heat(stage, side, highest)) for side, name in enumerate(SIDES)])
        for stage in stages
        if stage.places
    ]


def _heat(stage: Identified, side: int, highest: float) -> Markup:
    title = f"Share of {stage.of} important to the {SIDES[side]}, while {stage.task} was learned"
    cells = {place: pair[side] for place, pair in stage.places.items()}
    return figures.heat(
        title, rows=stage.layers, columns=stage.modules, cells=cells, highest=highest
    )


def _shares(stages: Sequence[Identified]) -> list[tuple[str, Markup]]:
    """Return for each stage a figure of its fusion cases over the rounds."""
    panels = []
    for stage in stages:
        title = f"Fusion cases while {stage.task} was learned"
        panels.append((stage.task, figures.shares(title, stage.rounds, CASES[:3])))
    return panels


def _dev_curves(curves: Sequence[DevCurve]) -> list[tuple[str, Markup, str]]:
    """Return for each stage with dev rows its task, its figure, and what followed in words."""
    panels = []
    for curve in curves:
        title = f"Dev {curve.metric} while {curve.task} was learned"
        picture = figures.dev_curve(
            title, curve.points, best=curve.best, is_score=curve.metric == "score"
        )
        ending = "stopped early" if curve.stopped else "the last step"
        words = f"{curve.metric} on {curve.rows} rows; weights of step {curve.weights_of}"
        panels.append((curve.task, picture, f"{words}; {ending}: {curve.points[-1][0]}"))
    return panels


def _profiles(found: Sequence[Interference]) -> list[tuple[str, Markup, str]]:
    """Return for each arrival its task, its figure over the layers, and its numbers in words."""
    panels = []
    for arrival in found:
        title = f"Interference of {arrival.task}, merged in stage {arrival.stage}, by layer"
        lines = [
            ("cosine", [layer.cosine for layer in arrival.layers]),
            ("opposite", [layer.against for layer in arrival.layers]),
        ]
        picture = figures.profile(title, [layer.name for layer in arrival.layers], lines)
        panels.append((f"{arrival.stage} {arrival.task}", picture, arrival.words))
    return panels


def _file(name: str) -> str:
    return (files("perdure.reporting") / name).read_text(encoding="utf-8")
