"""Which lineages may stand in one table, and what they say together."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engram.reporting.read import Run
from engram.reporting.spread import Spread, spread
from engram.seeds import digest


MEASURES = {
    "overall": "OP",
    "backward_transfer": "BWT",
    "forward_transfer": "FWT",
    "forgetting": "forgetting",
    "learning_accuracy": "learned",
}
# What may differ between lineages that repeat one another; where they lie is no setting at all.
REPEATED = ("seed", "tasks", "threads", "lineage", "data")


@dataclass(frozen=True)
class Method:
    """Lineages that differ in seed and order at most."""

    label: str
    runs: tuple[Run, ...]
    numbers: dict[str, Spread]
    seconds: Spread

    @property
    def op(self) -> Spread:
        return self.numbers["overall"]

    def trend(self, task: str) -> list[float | None]:
        """A task's score after each stage, the mean over the lineages, which have one order."""
        column = self.runs[0].matrix.tasks.index(task)
        rows = zip(*(run.matrix.rows for run in self.runs), strict=True)
        return [spread([row[column] for row in at]).mean for at in rows]


@dataclass(frozen=True)
class Set:
    """Lineages of the same tasks, base and mode of scoring, by method, the best first."""

    base: str
    scoring: tuple[tuple[str, str, str], ...]  # task, mode, metric
    methods: tuple[Method, ...]

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
        """Whether a method was run on orders enough for an interval."""
        return any(method.op.low is not None for method in self.methods)

    @property
    def differing(self) -> list[tuple[str, list[tuple[str, Any]]]]:
        """The settings in which the methods differ, other than the method, with their values."""
        flat = [(method.label, _flat(method.runs[0])) for method in self.methods]
        keys = list(dict.fromkeys(key for _, settings in flat for key in settings))
        ours = [key for key in keys if not key.startswith(("method.", "mode"))]
        found = [(key, [(label, settings.get(key)) for label, settings in flat]) for key in ours]
        return [(key, values) for key, values in found if len({str(v) for _, v in values}) > 1]


def sets(runs: Sequence[Run]) -> list[Set]:
    """The sets of the lineages that have learned something, the largest first."""
    found: dict[Any, list[Run]] = {}
    for run in runs:
        if run.stages:
            scoring = sorted((t, *run.scoring.get(t, ("", ""))) for t in run.matrix.tasks)
            found.setdefault((run.base, tuple(scoring)), []).append(run)
    made = [Set(base, scoring, _methods(own)) for (base, scoring), own in found.items()]
    return sorted(made, key=lambda one: -len(one.runs))


def _methods(runs: Sequence[Run]) -> tuple[Method, ...]:
    """By settings; where two of one name differ, their labels say in what."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        settings = {k: v for k, v in run.settings.items() if k not in REPEATED}
        found.setdefault(digest(settings), []).append(run)
    groups = list(found.values())

    def over(group: list[Run], values: list[float | None]) -> Spread:
        return spread(values, [run.matrix.tasks for run in group])

    made = [
        Method(
            label=_label(group[0], [other[0] for other in groups if other is not group]),
            runs=tuple(sorted(group, key=lambda run: (run.matrix.tasks, run.seed))),
            numbers={n: over(group, [run.numbers[n] for run in group]) for n in MEASURES},
            seconds=over(group, [run.seconds for run in group]),
        )
        for group in groups
    ]
    return tuple(sorted(made, key=lambda m: (m.op.mean is None, -(m.op.mean or 0), m.label)))


def _label(run: Run, others: Iterable[Run]) -> str:
    """The method's name; among others of that name, with the settings in which it differs."""
    own, alike = _flat(run), [_flat(other) for other in others if other.method == run.method]
    keys = [key for key in own if any(own[key] != other.get(key) for other in alike)]
    said = [f"{key.rpartition('method.')[2]} {own[key]}" for key in keys]
    return f"{run.method} ({', '.join(said)})" if said else run.method


def _flat(run: Run) -> dict[str, Any]:
    """The settings that a repetition shares, `{"a": {"b": 1}}` as `{"a.b": 1}`."""
    settings = {k: v for k, v in run.settings.items() if k not in REPEATED}
    methods = settings.pop("method")
    for method in methods if isinstance(methods, list) else [methods]:
        for keywords in method.values() if isinstance(method, dict) else ():
            settings |= {f"method.{key}": value for key, value in (keywords or {}).items()}
    return dict(_leaves(settings, ()))


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key in value:
            yield from _leaves(value[key], (*path, str(key)))
    else:
        yield ".".join(path), value


def _words(words: Iterable[str]) -> str:
    return ", ".join(sorted({word for word in words if word})) or "not scored"
