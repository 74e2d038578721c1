"""The YAML of a comparison: the keys of a run, a grid laid over them, and what is compared how."""

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, get_args

from perdure.comparison.cell import Cell
from perdure.config import Config, Mode, checked, load_config, read_settings, unknown_key
from perdure.errors import PerdureError, nearest
from perdure.places import where_it_goes
from perdure.reporting.results import method_name, order_name


PAIRED = ("tasks", "seed")  # what the cells of a line differ in
PLACES = ("lineage", "data")
CONSTANT = "constant"  # stands among the methods: each task's most common training answer
KEYS = tuple(f.name for f in dataclasses.fields(Config))


@dataclass(frozen=True)
class Choose:
    """How a hyper-parameter is chosen: `values` of `key` are tried on rows held out of train.

    `held_out` is their share, `seed` that of the trials. `methods` gives methods a key and values
    of their own, as many as the others have.
    """

    key: str
    values: list
    held_out: float = 0.2
    seed: int = 100
    methods: dict = field(default_factory=dict)

    def trials(self, method: str) -> tuple[str, list[Any]]:
        """The key that is chosen for a method, and the values that are tried."""
        own_choice = self.methods.get(method)
        return (own_choice["key"], own_choice["values"]) if own_choice else (self.key, self.values)


@dataclass(frozen=True)
class Line:
    """A line of the table: a method and the values of other keys, on all orders and seeds."""

    name: str
    method: str
    varied: dict[str, Any]
    settings: dict[str, Any]
    constant: bool = False


@dataclass(frozen=True)
class Grid:
    """`written` is the YAML as it was read; `orders` are the streams by their names.

    `published` are scores that others report for a line, by its name, to stand beside ours.
    """

    folder: Path
    written: dict[str, Any]
    lines: list[Line]
    orders: dict[str, Any]
    seeds: list[int]
    baseline: str | None = None
    compute_matched: bool = False
    choose: Choose | None = None
    published: dict[str, dict[str, Any]] = field(default_factory=dict)

    def cells(self, line: Line, chosen: dict[str, Any]) -> list[Cell]:
        """A line's cells; `chosen` is laid over its settings."""
        return [
            Cell(
                line.name,
                order,
                seed,
                {**settings, "tasks": tasks, "seed": seed},
                constant=line.constant,
            )
            for settings in [laid_over(line.settings, chosen)]
            for order, tasks in self.orders.items()
            for seed in self.seeds
        ]

    def baseline_of(self, line: Line) -> Line | None:
        """What a line is measured against: the baseline's line with the same other values."""
        for other in self.lines:
            same = other.method == self.baseline and other.varied == line.varied
            if other.name == self.baseline or same:
                return other
        return None


def read_grid(
    source: str | Path | dict[str, Any], over: list[str] | dict[str, Any] | None = None
) -> Grid:
    """The comparison that a YAML describes.

    Raises:
        PerdureError: an unknown key, an empty list, two cells alike, or no such baseline.
    """
    where = "the settings" if isinstance(source, dict) else str(source)
    values = read_settings(source, over)
    grid_keys = {key: values.pop(key) for key in (*OWN,) if key in values}
    for key, value in values.items():
        if key not in KEYS:
            raise PerdureError(f"{where}: {unknown_key(key, value, '', (*KEYS, *OWN))}")
    grid_values = {
        key: checked(key, grid_keys[key], kind, where)
        for key, kind in OWN.items()
        if key in grid_keys
    }
    axes = _axes(grid_values.get("grid"), where)
    values = {**values, "threads": values.get("threads") or 1}
    folder = values.pop("lineage", None) or ("" if isinstance(source, dict) else Path(where).stem)
    if not folder:
        raise PerdureError("lineage: missing; say where the comparison goes")
    orders = _orders(axes.pop("tasks", None) or [values.get("tasks")], where)
    seeds = axes.pop("seed", None) or [values.get("seed", 0)]
    choose = _choose(grid_values["choose"], axes, where) if grid_values.get("choose") else None
    lines = _lines(values, axes, _own_settings(grid_values.get("lines") or {}, axes, where))
    written = {key: value for key, value in {**values, **grid_keys}.items() if key not in PLACES}
    matched = grid_values.get("compute_matched", False)
    published = _published(grid_values.get("published") or {}, where)
    place, baseline = Path(folder), grid_values.get("baseline")
    grid = Grid(place, written, lines, orders, seeds, baseline, matched, choose, published)
    _check(grid, where, [*(grid_values.get("lines") or {})])
    return grid


OWN: dict[str, Any] = {
    "grid": dict,
    "baseline": str | None,
    "compute_matched": bool,
    "choose": dict | None,
    "published": dict | None,
    "lines": dict | None,
}
PUBLISHED = ("overall", "backward_transfer")


def _axes(grid: Any, where: str) -> dict[str, list[Any]]:
    if not grid:
        raise PerdureError(
            f"{where}: grid: missing; list values of keys of a run, such as method: [sequential, "
            "replay]"
        )
    for key, listed in grid.items():
        if str(key).partition(".")[0] not in KEYS:
            section, _, name = str(key).rpartition(".")
            hint = where_it_goes(name, section, KEYS)
            raise PerdureError(f"{where}: grid: {key!r} is not a key of a run; {hint}")
        if key in PLACES:
            raise PerdureError(f"{where}: grid: {key} is the comparison's own; set it beside grid")
        named = isinstance(listed, dict) and key == "method"
        if (not isinstance(listed, list) and not named) or not listed:
            raise PerdureError(f"{where}: grid: {key} takes a list of values, got {listed!r}")
    return dict(grid)


def _orders(streams: list[Any], where: str) -> dict[str, Any]:
    """The streams by their names; those of one name are numbered."""
    for stream in streams:
        if not isinstance(stream, str | list):
            raise PerdureError(
                f"{where}: tasks: a comparison needs streams, each a name or a list of tasks, "
                f"got {stream!r}"
            )
    names = [order_name(stream) for stream in streams]
    several = [name for name, count in Counter(names).items() if count > 1]
    numbered = [f"{n}.{i}" if n in several else n for i, n in enumerate(names, 1)]
    return dict(zip(numbered, streams, strict=True))


def _own_settings(
    settings_by_method: dict[str, Any], axes: dict[str, list[Any]], where: str
) -> dict[str, dict[str, Any]]:
    """The keys of a run that hold for one method of the grid alone, by its name."""
    for name, settings in settings_by_method.items():
        at = f"{where}: lines: {name}"
        if not isinstance(settings, dict) or not settings:
            raise PerdureError(
                f"{at}: takes keys of a run, as in {{memory.choose: surprise}}, got {settings!r}"
            )
        for key in settings:
            section, _, last = str(key).rpartition(".")
            if str(key).partition(".")[0] not in KEYS:
                raise PerdureError(
                    f"{at}: {key!r} is not a key of a run; {where_it_goes(last, section, KEYS)}"
                )
            if key in (*PLACES, *PAIRED, "method"):
                raise PerdureError(f"{at}: {key} cannot be a line's own; set it for the whole grid")
            if key in axes:
                raise PerdureError(f"{at}: {key} is in the grid as well; take one of the two")
    return {str(name): settings for name, settings in settings_by_method.items()}


def _lines(
    values: dict[str, Any], axes: dict[str, list[Any]], own_settings: dict[str, dict[str, Any]]
) -> list[Line]:
    """Every combination of the grid's keys but orders and seeds, methods first.

    `own_settings` are those of single methods, by their names.
    """
    methods = axes.pop("method", [values.get("method", "sequential")])
    if isinstance(methods, dict):  # by names of the grid's own
        named, methods = [str(name) for name in methods], list(methods.values())
    else:
        named = [_label(method, methods) for method in methods]
    several = [key for key, listed in axes.items() if len(listed) > 1]
    lines = []
    for (name, method), *others in product(zip(named, methods, strict=True), *axes.values()):
        settings = {**values, "method": method}
        if method in get_args(Mode)[1:]:  # `joint` in the place of a method
            settings |= {"method": "sequential", "mode": method}
        if method == CONSTANT:
            settings |= {"method": "sequential"}
        settings = laid_over(settings, own_settings.get(name, {}))
        laid = dict(zip(axes, others, strict=True))
        varied = {key: laid[key] for key in several}
        full = ", ".join([name, *(f"{key}={_short(value)}" for key, value in varied.items())])
        lines.append(Line(full, name, varied, laid_over(settings, laid), method == CONSTANT))
    return lines


def laid_over(settings: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Settings with others laid over them; `method.NAME.KEYWORD` reaches into a method.

    Raises:
        PerdureError: the method is another, or one of several.
    """
    for key in values:
        name = key.split(".")[1] if key.startswith("method.") else None
        method = settings.get("method")
        if name and method != name and not (isinstance(method, dict) and name in method):
            raise PerdureError(
                f"{key}: the method is {method_name(method)}, not {name}; a keyword of one method "
                "goes into method: {NAME: {KEYWORD: ...}}"
            )
    return read_settings(settings, values)


def _label(method: Any, methods: list[Any]) -> str:
    """A method's name, with its keywords where another has the same."""
    name = method_name(method)
    if [method_name(other) for other in methods].count(name) == 1:
        return name
    parts = method if isinstance(method, list) else [method]
    keyword_sets = [
        keywords for part in parts if isinstance(part, dict) for keywords in part.values()
    ]
    keyword_texts = [
        f"{k}={_short(v)}" for keyword_set in keyword_sets for k, v in (keyword_set or {}).items()
    ]
    return f"{name}({', '.join(keyword_texts)})" if keyword_texts else name


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _choose(written: dict[str, Any], axes: dict[str, list[Any]], where: str) -> Choose:
    kinds = {f.name: f.type for f in dataclasses.fields(Choose)}
    for key in written:
        if key not in kinds:
            raise PerdureError(f"{where}: choose: unknown key {key!r}; {nearest(str(key), kinds)}")
    for key in ("key", "values"):
        if key not in written:
            raise PerdureError(
                f"{where}: choose: {key} is missing, as in choose: {{key: training.learning_rate, "
                "values: [1e-4, 1e-3]}"
            )
    built = {k: checked(k, v, kinds[k], f"{where}: choose") for k, v in written.items()}
    choose = Choose(**built)
    if not 0 < choose.held_out < 1:
        raise PerdureError(
            f"{where}: choose: held_out is a share of train, above 0 and below 1, got "
            f"{choose.held_out}"
        )
    count = len(choose.values)
    for name, choice in {
        "": {"key": choose.key, "values": choose.values},
        **choose.methods,
    }.items():
        at = f"{where}: choose" + (f": methods: {name}" if name else "")
        listed = choice.get("values") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or set(choice) != {"key", "values"}:
            raise PerdureError(f"{at}: takes key and values, got {choice!r}")
        if not isinstance(listed, list) or not listed:
            raise PerdureError(f"{at}: values takes a list of values, got {listed!r}")
        if len(listed) != count:
            raise PerdureError(
                f"{at}: {len(listed)} values for {count} of the others; every method gets the same "
                "number of trials"
            )
        if str(choice["key"]).partition(".")[0] not in KEYS or choice["key"] in (*PLACES, *PAIRED):
            section, _, name = str(choice["key"]).rpartition(".")
            hint = where_it_goes(name, section, KEYS)
            raise PerdureError(f"{at}: {choice['key']!r} is not a key to choose; {hint}")
        if choice["key"] in axes:
            raise PerdureError(f"{at}: {choice['key']} is in the grid as well; take one of the two")
    return choose


def _published(scores_by_line: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    for name, scores in scores_by_line.items():
        at = f"{where}: published: {name}"
        if not isinstance(scores, dict) or not scores:
            raise PerdureError(f"{at}: takes {' and '.join(PUBLISHED)}, got {scores!r}")
        for key, value in scores.items():
            if key not in PUBLISHED:
                raise PerdureError(f"{at}: unknown key {key!r}; {nearest(str(key), PUBLISHED)}")
            if not isinstance(value, int | float) or not -1 <= value <= 1:
                raise PerdureError(f"{at}: {key} is a share, from -1 to 1, got {value!r}")
    return {str(name): scores for name, scores in scores_by_line.items()}


def _check(grid: Grid, where: str, methods_with_settings: list[str]) -> None:
    """That no two cells are alike, and that the names are names of the grid.

    `methods_with_settings` are the methods that have settings of their own.
    """
    if all(line.constant for line in grid.lines):
        raise PerdureError(f"{where}: grid: nothing learns; list a method beside {CONSTANT}")
    methods = list(dict.fromkeys(line.method for line in grid.lines))
    lines = [line.name for line in grid.lines]
    names = {*methods, *lines}
    for name, known in (
        *([(grid.baseline, names)] if grid.baseline is not None else ()),
        *((name, methods) for name in (grid.choose.methods if grid.choose else ())),
        *((name, methods) for name in methods_with_settings),
        *((name, lines) for name in grid.published),
    ):
        if name not in known:
            raise PerdureError(
                f"{where}: {name!r} is not a method of the grid; {nearest(name, known)}"
            )
    seen: dict[str, Cell] = {}
    for cell in (cell for line in grid.lines for cell in grid.cells(line, {})):
        try:
            load_config(cell.settings)
        except PerdureError as error:
            raise PerdureError(f"{where}: {str(error).removeprefix('the settings: ')}") from error
        for same in (cell.digest, cell.title):
            if same in seen:
                raise PerdureError(
                    f"{where}: grid: {seen[same].title} stands there twice; take one out"
                )
            seen[same] = cell
