"""The page: one HTML file that holds all it needs."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from engram.reporting import figures
from engram.reporting.groups import MEASURES, Method, Set, sets
from engram.reporting.importance import Identified
from engram.reporting.read import Run


SIDES = ("new task", "old tasks")
CASES = ("both", "new only", "old only", "neither")
OPENED = 4  # methods whose first lineage is unfolded
DRAWN = 6  # methods in one panel; more lines cannot be told apart


def html(runs: Sequence[Run]) -> str:
    """Everything that comes from a lineage is escaped by the template, or by `svg.tag`."""
    environment = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": number, "signed": signed, "seconds": seconds}
    found = sets(runs)
    return environment.get_template("page.html.jinja").render(
        style=Markup(_file("page.css")),
        runs=runs,
        sets=[(one, _figures(one)) for one in found],
        empty=[run for run in runs if not run.stages],
        measures=MEASURES,
        number=number,
        signed=signed,
        cases=CASES,
        trends=_trends,
        together=together,
        heats=_heats,
        shares=_shares,
        opened=OPENED,
        title=", ".join(_names(found)) or "nothing learned yet",
    )


def number(value: float | None) -> str:
    """Three decimals, `-` when it is unknown."""
    return "-" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """With a sign, which a minus of its own width gives."""
    return "-" if value is None else f"{value:+.3f}".replace("-", "\u2212")


def seconds(value: float | None) -> str:
    """To three digits or so."""
    return "-" if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def together(one: Set) -> bool:
    """Whether the methods can be drawn in one panel a task."""
    return 1 < len(one.methods) <= DRAWN and len(one.orders) == 1


def _names(found: Sequence[Set]) -> list[str]:
    names = list(dict.fromkeys(method.label for one in found for method in one.methods))
    return names if len(names) < 4 else [f"{len(names)} methods"]


def _figures(one: Set) -> dict[str, Any]:
    """The pictures of a set, those for which there is something to compare."""
    if len(one.runs) == 1:
        return {}
    rows = [
        (m.label, m.op, [v for run in m.runs if (v := run.numbers["overall"]) is not None])
        for m in one.methods
    ]
    made: dict[str, Any] = {"op": figures.whiskers("Overall performance by method", rows)}
    kept = _points(one, lambda run: run.numbers["learning_accuracy"])
    cost = _points(one, lambda run: run.seconds)
    if kept:
        title = "Plasticity against retention by method"
        names = ("learned: right after learning →", "↑ OP: at the end")
        made["kept"] = figures.scatter(title, kept, *names, diagonal=True)
    if cost:
        title = "Training seconds against overall performance by method"
        made["cost"] = figures.scatter(title, cost, "seconds of training →", "↑ OP")
    return made


def _points(one: Set, across: Any) -> list[figures.Point]:
    """A labelled point a method, the mean, and a small one a lineage where it has several."""
    found = []
    for i, method in enumerate(one.methods):
        own = [(across(run), run.numbers["overall"]) for run in method.runs]
        known = [(x, y) for x, y in own if x is not None and y is not None]
        if len(known) < len(own):
            continue
        if len(known) > 1:
            found += [figures.Point(x, y, i) for x, y in known]
        x, y = (sum(column) / len(known) for column in zip(*known, strict=True))
        found.append(figures.Point(x, y, i, method.label))
    return found


def _trends(methods: Sequence[Method] | Run) -> list[tuple[str, Markup]]:
    """A panel a task: a line a method, or the one line of a lineage."""
    matrix = methods.matrix if isinstance(methods, Run) else methods[0].runs[0].matrix
    made = []
    for j, (task, at) in enumerate(zip(matrix.tasks, matrix.learned_at, strict=True)):
        if isinstance(methods, Run):
            lines = [("", [row[j] for row in matrix.rows])]
        else:
            lines = [(method.label, method.trend(task)) for method in methods]
        highest = max([1.0, *(v for _, values in lines for v in values if v is not None)])
        made.append((task, figures.trend(f"Score of {task} over the stages", lines, at, highest)))
    return made


def _heats(found: Sequence[Identified]) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """Two a stage: what is important to the new task, and to the old ones."""
    highest = max((v for one in found for pair in one.places.values() for v in pair), default=1.0)
    return [
        (one.task, [(name, _heat(one, side, highest)) for side, name in enumerate(SIDES)])
        for one in found
        if one.places
    ]


def _heat(one: Identified, side: int, highest: float) -> Markup:
    title = f"Share of weights important to the {SIDES[side]}, while {one.task} was learned"
    cells = {place: pair[side] for place, pair in one.places.items()}
    return figures.heat(title, one.layers, one.modules, cells, highest)


def _shares(found: Sequence[Identified]) -> list[tuple[str, Markup]]:
    return [
        (
            one.task,
            figures.shares(f"Fusion cases while {one.task} was learned", one.rounds, CASES[:3]),
        )
        for one in found
    ]


def _file(name: str) -> str:
    return (files("engram.reporting") / name).read_text(encoding="utf-8")
