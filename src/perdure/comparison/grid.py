"""The YAML of a comparison: the keys of a run, a grid of values, and how lines are compared."""

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


PAIRED = ("tasks", "seed")  # the keys in which the cells of a line differ
PLACES = ("lineage", "data")
CONSTANT = "constant"  # listed as a method: always answer with the most common training answer
KEYS = tuple(f.name for f in dataclasses.fields(Config))


@dataclass(frozen=True)
class Choose:
    """How a hyper-parameter is chosen, by trials on rows that are held out of train.

    Args:
        key: the key of the hyper-parameter.
        values: the values to try.
        held_out: the share of the train rows to hold out.
        seed: the seed of the trials.
        methods: another `key` and as many other `values`, by the names of single methods.
    """

    key: str
    values: list
    held_out: float = 0.2
    seed: int = 100
    methods: dict = field(default_factory=dict)

    def trials(self, method: str) -> tuple[str, list[Any]]:
        """The key and the values to try for a method."""
        choice = self.methods.get(method)
        return (choice["key"], choice["values"]) if choice else (self.key, self.values)


@dataclass(frozen=True)
class Line:
    """A line of the table: a method with values of other keys, run on all orders and seeds.

    Args:
        name: the name in the table.
        method: the name of the method.
        varied: the values of the grid's other keys that have several values.
        settings: the keys of a run, without orders and seeds.
        constant: whether the line is `constant` (`comparison/constant.py`).
    """

    name: str
    method: str
    varied: dict[str, Any]
    settings: dict[str, Any]
    constant: bool = False


@dataclass(frozen=True)
class Grid:
    """A comparison.

    Args:
        folder: the folder of the comparison.
        written: the YAML as it was read.
        lines: the lines of the table.
        orders: the streams, by name.
        seeds: the seeds.
        baseline: the line or method with which the lines are compared.
        compute_matched: whether replay gets the compute of Recurrent-KIF (`comparison/matched.py`).
        choose: how a hyper-parameter is chosen, if one is.
        published: scores that others report, by the name of the line.
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
        """The cells of a line; the `chosen` values override its settings."""
        settings = with_overrides(line.settings, chosen)
        return [
            Cell(
                line=line.name,
                order=order,
                seed=seed,
                settings={**settings, "tasks": tasks, "seed": seed},
                constant=line.constant,
            )
            for order, tasks in self.orders.items()
            for seed in self.seeds
        ]

    def baseline_of(self, line: Line) -> Line | None:
        """The line with which a line is compared, with the same values of the other keys."""
        for other in self.lines:
            is_match = other.method == self.baseline and other.varied == line.varied
            if other.name == self.baseline or is_match:
                return other
        return None


def read_grid(
    source: str | Path | dict[str, Any], overrides: list[str] | dict[str, Any] | None = None
) -> Grid:
    """The comparison that a YAML describes.

    Raises:
        PerdureError: an unknown key, an empty list, two equal cells, or an unknown baseline.
    """
    where = "the settings" if isinstance(source, dict) else str(source)
    values = read_settings(source, overrides)
    grid_keys = {key: values.pop(key) for key in (*GRID_KEYS,) if key in values}
    for key, value in values.items():
        if key not in KEYS:
            raise PerdureError(f"{where}: {unknown_key(key, value, '', (*KEYS, *GRID_KEYS))}")
    grid_values = {
        key: checked(key, grid_keys[key], kind, where)
        for key, kind in GRID_KEYS.items()
        if key in grid_keys
    }
    axes = _axes(grid_values.get("grid"), where)
    values = {**values, "threads": values.get("threads") or 1}
    folder = values.pop("lineage", None) or ("" if isinstance(source, dict) else Path(where).stem)
    if not folder:
        raise PerdureError("lineage: missing; name the folder of the comparison")
    orders = _orders(axes.pop("tasks", None) or [values.get("tasks")], where)
    seeds = axes.pop("seed", None) or [values.get("seed", 0)]
    choose = _choose(grid_values["choose"], axes, where) if grid_values.get("choose") else None
    method_settings = _method_settings(grid_values.get("lines") or {}, axes, where)
    grid = Grid(
        folder=Path(folder),
        written={k: v for k, v in {**values, **grid_keys}.items() if k not in PLACES},
        lines=_lines(values, axes, method_settings),
        orders=orders,
        seeds=seeds,
        baseline=grid_values.get("baseline"),
        compute_matched=grid_values.get("compute_matched", False),
        choose=choose,
        published=_published(grid_values.get("published") or {}, where),
    )
    _check_names(grid, where, methods_with_settings=list(method_settings))
    _check_cells(grid, where)
    return grid


# The keys that a comparison has and a run has not, with their types.
GRID_KEYS: dict[str, Any] = {
    "grid": dict,
    "baseline": str | None,
    "compute_matched": bool,
    "choose": dict | None,
    "published": dict | None,
    "lines": dict | None,
}
PUBLISHED = ("overall", "backward_transfer")


def _axes(grid: Any, where: str) -> dict[str, list[Any]]:
    """Check `grid:`, and return its lists of values by key.

    Raises:
        PerdureError: there is no grid, a key cannot vary, or its values are not a list.
    """
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
            raise PerdureError(f"{where}: grid: {key} cannot vary; set it next to grid")
        is_named = isinstance(listed, dict) and key == "method"  # methods by name
        if (not isinstance(listed, list) and not is_named) or not listed:
            raise PerdureError(f"{where}: grid: {key} takes a list of values, got {listed!r}")
    return dict(grid)


def _orders(streams: list[Any], where: str) -> dict[str, Any]:
    """The streams by name; streams with the same name are numbered."""
    for stream in streams:
        if not isinstance(stream, str | list):
            raise PerdureError(
                f"{where}: tasks: a comparison needs streams, each a name or a list of tasks, "
                f"got {stream!r}"
            )
    names = [order_name(stream) for stream in streams]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    numbered = [f"{name}.{i}" if name in repeated else name for i, name in enumerate(names, 1)]
    return dict(zip(numbered, streams, strict=True))


def _method_settings(
    settings_by_method: dict[str, Any], axes: dict[str, list[Any]], where: str
) -> dict[str, dict[str, Any]]:
    """The keys of a run that are set only for one method of the grid, by its name, checked."""
    for name, settings in settings_by_method.items():
        at = f"{where}: lines: {name}"
        if not isinstance(settings, dict) or not settings:
            raise PerdureError(
                f"{at}: takes keys of a run, as in {{memory.choose: surprise}}, got {settings!r}"
            )
        for key in settings:
            section, _, name_in_section = str(key).rpartition(".")
            if str(key).partition(".")[0] not in KEYS:
                hint = where_it_goes(name_in_section, section, KEYS)
                raise PerdureError(f"{at}: {key!r} is not a key of a run; {hint}")
            if key in (*PLACES, *PAIRED, "method"):
                raise PerdureError(
                    f"{at}: {key} cannot be set for one line; set it for the whole grid"
                )
            if key in axes:
                raise PerdureError(f"{at}: {key} is also in the grid; remove one of the two")
    return {str(name): settings for name, settings in settings_by_method.items()}


def _lines(
    values: dict[str, Any], axes: dict[str, list[Any]], method_settings: dict[str, dict[str, Any]]
) -> list[Line]:
    """All combinations of the grid's keys without orders and seeds, the methods first.

    `method_settings` are settings of single methods, by name.
    """
    methods = axes.pop("method", [values.get("method", "sequential")])
    if isinstance(methods, dict):  # the grid names its methods
        names, methods = [str(name) for name in methods], list(methods.values())
    else:
        names = [_label(method, methods) for method in methods]
    varied_keys = [key for key, listed in axes.items() if len(listed) > 1]
    lines = []
    for (name, method), *axis_values in product(zip(names, methods, strict=True), *axes.values()):
        settings = {**values, "method": method}
        if method in get_args(Mode)[1:]:  # a mode such as `joint` is listed as a method
            settings |= {"method": "sequential", "mode": method}
        if method == CONSTANT:
            settings |= {"method": "sequential"}
        settings = with_overrides(settings, method_settings.get(name, {}))
        combination = dict(zip(axes, axis_values, strict=True))
        varied = {key: combination[key] for key in varied_keys}
        parts = [name, *(f"{key}={_short(value)}" for key, value in varied.items())]
        line = Line(
            name=", ".join(parts),
            method=name,
            varied=varied,
            settings=with_overrides(settings, combination),
            constant=method == CONSTANT,
        )
        lines.append(line)
    return lines


def with_overrides(settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Settings with some values replaced; `method.NAME.KEYWORD` sets a keyword of a method.

    Raises:
        PerdureError: the settings have another method.
    """
    for key in overrides:
        name = key.split(".")[1] if key.startswith("method.") else None
        method = settings.get("method")
        if name and method != name and not (isinstance(method, dict) and name in method):
            raise PerdureError(
                f"{key}: the method is {method_name(method)}, not {name}; a keyword of one method "
                "goes into method: {NAME: {KEYWORD: ...}}"
            )
    return read_settings(settings, overrides)


def _label(method: Any, methods: list[Any]) -> str:
    """A method's name, with its keywords if several methods have the same name."""
    name = method_name(method)
    if [method_name(other) for other in methods].count(name) == 1:
        return name
    parts = method if isinstance(method, list) else [method]
    keyword_texts = [
        f"{key}={_short(value)}"
        for part in parts
        if isinstance(part, dict)
        for keywords in part.values()
        for key, value in (keywords or {}).items()
    ]
    return f"{name}({', '.join(keyword_texts)})" if keyword_texts else name


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _choose(written: dict[str, Any], axes: dict[str, list[Any]], where: str) -> Choose:
    """Read and check `choose:`."""
    types = {f.name: f.type for f in dataclasses.fields(Choose)}
    for key in written:
        if key not in types:
            raise PerdureError(f"{where}: choose: unknown key {key!r}; {nearest(str(key), types)}")
    for key in ("key", "values"):
        if key not in written:
            raise PerdureError(
                f"{where}: choose: {key} is missing, as in choose: {{key: training.learning_rate, "
                "values: [1e-4, 1e-3]}"
            )
    checked_values = {k: checked(k, v, types[k], f"{where}: choose") for k, v in written.items()}
    choose = Choose(**checked_values)
    if not 0 < choose.held_out < 1:
        raise PerdureError(
            f"{where}: choose: held_out is a share of train, above 0 and below 1, got "
            f"{choose.held_out}"
        )
    count, at = len(choose.values), f"{where}: choose"
    _check_choice({"key": choose.key, "values": choose.values}, axes, at, count)
    for name, choice in choose.methods.items():
        _check_choice(choice, axes, f"{at}: methods: {name}", count)
    return choose


def _check_choice(choice: Any, axes: dict[str, list[Any]], at: str, count: int) -> None:
    """Raise PerdureError if `choice` is not a key that can be chosen with `count` values."""
    if not isinstance(choice, dict) or set(choice) != {"key", "values"}:
        raise PerdureError(f"{at}: takes key and values, got {choice!r}")
    key, values = choice["key"], choice["values"]
    if not isinstance(values, list) or not values:
        raise PerdureError(f"{at}: values takes a list of values, got {values!r}")
    if len(values) != count:
        raise PerdureError(
            f"{at}: has {len(values)} values, and the others have {count}; every method gets the "
            "same number of trials"
        )
    if str(key).partition(".")[0] not in KEYS or key in (*PLACES, *PAIRED):
        section, _, name = str(key).rpartition(".")
        raise PerdureError(
            f"{at}: {key!r} is not a key to choose; {where_it_goes(name, section, KEYS)}"
        )
    if key in axes:
        raise PerdureError(f"{at}: {key} is also in the grid; remove one of the two")


def _published(scores_by_line: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """Check `published:`; the scores of each line."""
    for name, scores in scores_by_line.items():
        at = f"{where}: published: {name}"
        if not isinstance(scores, dict) or not scores:
            raise PerdureError(f"{at}: takes {' and '.join(PUBLISHED)}, got {scores!r}")
        for key, value in scores.items():
            if key not in PUBLISHED:
                raise PerdureError(f"{at}: unknown key {key!r}; {nearest(str(key), PUBLISHED)}")
            if not isinstance(value, int | float) or not -1 <= value <= 1:
                raise PerdureError(f"{at}: {key} is a score from -1 to 1, got {value!r}")
    return {str(name): scores for name, scores in scores_by_line.items()}


def _check_names(grid: Grid, where: str, methods_with_settings: list[str]) -> None:
    """Raise PerdureError if a name of a method or a line is not one of the grid's."""
    if all(line.constant for line in grid.lines):
        raise PerdureError(f"{where}: grid: nothing is learned; list a method besides {CONSTANT}")
    methods = list(dict.fromkeys(line.method for line in grid.lines))
    lines = [line.name for line in grid.lines]
    with_choice = list(grid.choose.methods) if grid.choose else []
    used_names = [
        *((name, methods) for name in (*with_choice, *methods_with_settings)),
        *((name, lines) for name in grid.published),
    ]
    if grid.baseline is not None:
        used_names.insert(0, (grid.baseline, [*methods, *lines]))
    for name, valid in used_names:
        if name not in valid:
            raise PerdureError(
                f"{where}: {name!r} is not a method of the grid; {nearest(name, set(valid))}"
            )


def _check_cells(grid: Grid, where: str) -> None:
    """Raise PerdureError if the settings of a cell are wrong, or if two cells are equal."""
    cells: dict[str, Cell] = {}  # by digest and by title
    for cell in (cell for line in grid.lines for cell in grid.cells(line, {})):
        try:
            load_config(cell.settings)
        except PerdureError as error:
            raise PerdureError(f"{where}: {str(error).removeprefix('the settings: ')}") from error
        for identity in (cell.digest, cell.title):
            if identity in cells:
                raise PerdureError(
                    f"{where}: grid: {cells[identity].title} is listed twice; remove one of the two"
                )
            cells[identity] = cell
