"""Grouping lineages whose scores may be compared, and averaging them by method."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from perdure.reporting.outcomes import Status
from perdure.reporting.read import Run, leaves
from perdure.reporting.spread import Spread, spread
from perdure.seeds import digest


MEASURES = {
    "overall": "OP",
    "backward_transfer": "BWT",
    "forward_transfer": "FWT",
    "forgetting": "forgetting",
    "learning_accuracy": "learned",
}
# Keys that may differ between lineages that repeat each other.
REPEATED = ("seed", "tasks", "threads", "lineage", "data")


@dataclass(frozen=True)
class MethodRuns:
    """Lineages that differ only in seed and order.

    Args:
        label: the method's name, with the settings that distinguish it from others of that name.
        runs: the lineages.
        numbers: the spread of each measure of `MEASURES`.
        seconds: the spread of the seconds of training.
    """

    label: str
    runs: tuple[Run, ...]
    numbers: dict[str, Spread]
    seconds: Spread

    @property
    def op(self) -> Spread:
        """The spread of the overall performance."""
        return self.numbers["overall"]

    @property
    def lost(self) -> int:
        """How many old tasks the lineages have lost, together."""
        return sum(len(run.verdict.lost) for run in self.runs)

    @property
    def measured(self) -> int:
        """How many old tasks of the lineages were measured after a later stage, together."""
        return sum(run.verdict.measured for run in self.runs)

    @property
    def status(self) -> Status:
        return "lost" if self.lost else "kept" if self.measured else "unmeasured"

    @property
    def lost_words(self) -> str:
        """How many old tasks were lost, in words."""
        if not self.measured:
            return "not measured"
        return f"{self.lost or 'none'} of {self.measured}"

    def trend(self, task: str) -> list[float | None]:
        """Return a task's score after each stage, averaged over the lineages.

        The lineages must have the same order.
        """
        column = self.runs[0].matrix.tasks.index(task)
        stages = zip(*(run.matrix.rows for run in self.runs), strict=True)
        return [spread([row[column] for row in rows]).mean for rows in stages]


@dataclass(frozen=True)
class Set:
    """Lineages with the same tasks, test rows, base and scoring, whose scores may be compared.

    Test rows that were drawn by the seed are the same if they were drawn from the same rows.

    Args:
        base: the base.
        scoring: (task, mode, metric) of each task.
        methods: the lineages by method, the best first.
    """

    base: str
    scoring: tuple[tuple[str, str, str], ...]
    methods: tuple[MethodRuns, ...]

    @property
    def runs(self) -> list[Run]:
        return [run for method in self.methods for run in method.runs]

    @property
    def orders(self) -> list[tuple[str, ...]]:
        return list(dict.fromkeys(run.matrix.tasks for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    @property
    def scored(self) -> bool:
        """Whether a task has test rows."""
        return any(mode for _, mode, _ in self.scoring)

    @property
    def mode(self) -> str:
        return _words(mode for _, mode, _ in self.scoring)

    @property
    def metric(self) -> str:
        return _words(metric for _, _, metric in self.scoring)

    @property
    def repeated(self) -> bool:
        return any(len(method.runs) > 1 for method in self.methods)

    @property
    def intervals(self) -> bool:
        """Whether a method was run on enough orders for an interval."""
        return any(method.op.low is not None for method in self.methods)

    @property
    def differing(self) -> list[tuple[str, list[tuple[str, Any]]]]:
        """The settings other than the method in which the methods differ, with their values."""
        flat = [(method.label, _flat(method.runs[0])) for method in self.methods]
        keys = dict.fromkeys(key for _, settings in flat for key in settings)
        by_key = [
            (key, [(label, settings.get(key)) for label, settings in flat])
            for key in keys
            if not key.startswith(("method.", "mode"))
        ]
        return [(key, values) for key, values in by_key if len({str(v) for _, v in values}) > 1]


def sets(runs: Sequence[Run]) -> list[Set]:
    """Group the lineages that have learned something into sets, the largest first."""
    groups: dict[Any, list[Run]] = {}
    drawn_from: dict[
        tuple[str, str], str
    ] = {}  # by task and hash, so that a moved file is the same
    for run in runs:
        if run.stages:
            scoring = sorted((task, *run.scoring.get(task, ("", ""))) for task in run.matrix.tasks)
            rows = tuple(
                drawn_from.setdefault((task, run.tests[task].sha256), run.tests[task].drawn_from)
                for task in sorted(run.matrix.tasks)
                if task in run.tests
            )
            groups.setdefault((run.base, tuple(scoring), rows), []).append(run)
    run_sets = [
        Set(base=base, scoring=scoring, methods=_methods(group))
        for (base, scoring, _), group in groups.items()
    ]
    return sorted(run_sets, key=lambda run_set: -len(run_set.runs))


def _methods(runs: Sequence[Run]) -> tuple[MethodRuns, ...]:
    """Group lineages by their settings; labels show how methods of the same name differ."""
    by_settings: dict[str, list[Run]] = {}
    for run in runs:
        settings = {k: v for k, v in run.whole_settings.items() if k not in REPEATED}
        by_settings.setdefault(digest(settings), []).append(run)
    groups = list(by_settings.values())

    def over(group: list[Run], values: list[float | None]) -> Spread:
        return spread(values, [run.matrix.tasks for run in group])

    methods = [
        MethodRuns(
            label=_label(group[0], [other[0] for other in groups if other is not group]),
            runs=tuple(sorted(group, key=lambda run: (run.matrix.tasks, run.seed))),
            numbers={name: over(group, [run.numbers[name] for run in group]) for name in MEASURES},
            seconds=over(group, [run.seconds for run in group]),
        )
        for group in groups
    ]
    return tuple(sorted(methods, key=lambda m: (m.op.mean is None, -(m.op.mean or 0), m.label)))


def _label(run: Run, others: Iterable[Run]) -> str:
    """Return the method's name, with the settings that distinguish it from others of that name."""
    settings = _flat(run)
    same_name = [_flat(other) for other in others if other.method == run.method]
    differing = [
        f"{key.rpartition('method.')[2]} {value}"
        for key, value in settings.items()
        if any(value != other.get(key) for other in same_name)
    ]
    return f"{run.method} ({', '.join(differing)})" if differing else run.method


def _flat(run: Run) -> dict[str, Any]:
    """Return the settings that repetitions share, with `{"a": {"b": 1}}` as `{"a.b": 1}`."""
    settings = {k: v for k, v in run.whole_settings.items() if k not in REPEATED}
    methods = settings.pop("method")
    for method in methods if isinstance(methods, list) else [methods]:
        for keywords in method.values() if isinstance(method, dict) else ():
            settings |= {f"method.{key}": value for key, value in (keywords or {}).items()}
    return dict(leaves(settings))


def _words(words: Iterable[str]) -> str:
    return ", ".join(sorted({word for word in words if word})) or "not scored"
