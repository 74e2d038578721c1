"""Reading the files of lineages as plain data, without loading a model."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from perdure.config import DEFAULT_TRAINING, filled_adapter
from perdure.errors import PerdureError, nearest
from perdure.lineage.experts import merged_folder
from perdure.lineage.files import line_count
from perdure.lineage.history import learned_by
from perdure.lineage.lineage import Lineage
from perdure.measure.matrix import ScoreMatrix, summary
from perdure.models.layout import MEMORY, METHOD_STATE
from perdure.reporting.importance import Identified, identified
from perdure.reporting.interference import Interference, interference_of
from perdure.reporting.outcomes import (
    LineageVerdict,
    Outcome,
    StageVerdict,
    stage_verdicts,
)
from perdure.reporting.rerun import Rerun, rerun
from perdure.reporting.results import method_of, stage_seconds
from perdure.reporting.samples import TaskSamples, sample_answers
from perdure.seeds import digest


# Settings that the page shows elsewhere: the tasks are in the ledger, and the base at the top.
NOT_SHOWN = ("tasks", "base", "lineage")


@dataclass(frozen=True)
class Line:
    """A line of the ledger, with the timings of its stage.

    Args:
        stage: the number of the stage.
        verb: the verb that wrote the line; `undo 1` if it took out what stage 1 had merged.
        parent: the previous stage.
        active: whether the stage is part of the current model.
        task: the task that the stage learned, None if it learned none.
        rows: the number of train rows.
        sha256: the hash of the train rows.
        remembered: the number of rows in the stage's memory.
        date: when the stage was learned.
        steps: the number of optimizer steps.
        learning: seconds of learning.
        scoring: seconds of scoring.
        passed: how many rows went through the model, (forward, backward).
        reasons: why the gate refused the stage; empty for every other line.
    """

    stage: int
    verb: str
    parent: int | None
    active: bool
    task: str | None = None
    rows: int | None = None
    sha256: str = ""
    remembered: int = 0
    date: str | None = None
    steps: int | None = None
    learning: float | None = None
    scoring: float | None = None
    passed: tuple[int, int] | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class DevCurve:
    """What was measured on dev rows while a task was learned.

    Args:
        task: the task.
        rows: the number of dev rows.
        metric: what was compared, `loss` or `score`.
        points: (optimizer step, value); the value is None if it was not finite.
        best: the step of the best value, None if there is none.
        weights_of: the step whose weights the stage has.
        stopped: whether the task was ended early.
    """

    task: str
    rows: int
    metric: str
    points: tuple[tuple[int, float | None], ...]
    best: int | None
    weights_of: int
    stopped: bool


@dataclass(frozen=True)
class TestRows:
    """The test rows of a task.

    Args:
        sha256: the hash of the rows.
        drawn_from: what does not change with the seed: of rows that were drawn by it, a hash of
            what they were drawn from, and how many; of others, the hash of the rows.
    """

    sha256: str
    drawn_from: str


@dataclass(frozen=True)
class Run:
    """The data of a lineage.

    Args:
        scoring: the (mode, metric) of each scored task.
        verdict: what the active stages have lost.
        verdicts: the verdict on each active stage that has one.
        test_rows: the number of test rows of each scored task.
        sampled: the cells of the matrix that are estimated from a sample of the test rows, as (row,
            task).
        samples: sample answers to each task.
        dev: what was measured on dev rows, for each stage that had some.
        interference: that of each checkpoint that was merged into something.
        tests: the test rows of each task that has some.
    """

    path: Path
    label: str
    method: str
    seed: int
    base: str
    settings: dict[str, Any]
    matrix: ScoreMatrix
    numbers: dict[str, float | None]
    scoring: dict[str, tuple[str, str]]
    ledger: tuple[Line, ...]
    versions: dict[str, str]
    peak_mib: float | None
    identified: tuple[Identified, ...]
    rerun: Rerun
    verdict: LineageVerdict
    verdicts: tuple[StageVerdict, ...]
    test_rows: dict[str, int]
    sampled: frozenset[tuple[int, str]]
    samples: tuple[TaskSamples, ...]
    dev: tuple[DevCurve, ...] = ()
    interference: tuple[Interference, ...] = ()
    tests: dict[str, TestRows] = field(default_factory=dict)

    @property
    def stages(self) -> list[Line]:
        """The lines of the active stages that learned a task, oldest first."""
        lines = [line for line in reversed(self.ledger) if line.task and not line.reasons]
        by_stage = {line.stage: line for line in lines}
        return [line for line in by_stage.values() if line.active][::-1]

    @property
    def refused(self) -> list[Line]:
        """The lines of the stages that the gate refused, oldest first."""
        return [line for line in self.ledger if line.reasons]

    @property
    def headline(self) -> str:
        """The verdict in one sentence, with the tasks that the gate refused and no stage has."""
        learned = {line.task for line in self.stages}
        refused = [line.task for line in self.refused if line.task and line.task not in learned]
        names = ", ".join(dict.fromkeys(refused))
        return (
            f"{self.verdict.headline}; the gate refused {names}" if names else self.verdict.headline
        )

    def outcome(self, row: int, task: str) -> Outcome | None:
        """Return what became of a task at the stage of a row of the matrix, None if unknown."""
        stage = self.stages[row - 1].stage if row else 0
        outcomes = [o for v in self.verdicts if v.stage == stage for o in v.outcomes]
        return next((outcome for outcome in outcomes if outcome.task == task), None)

    @property
    def whole_settings(self) -> dict[str, Any]:
        """The settings, with Perdure's defaults for training and adapter."""
        return {
            **self.settings,
            "training": {**DEFAULT_TRAINING, **self.settings["training"]},
            "adapter": filled_adapter(self.settings["adapter"]),
        }

    @property
    def filled_settings(self) -> dict[str, Any]:
        """The settings by dotted key, with Perdure's defaults for training and adapter."""
        settings = self.whole_settings
        for name in NOT_SHOWN:
            settings.pop(name, None)
        return {key: value for key, value in leaves(settings) if value is not None}

    @property
    def seconds(self) -> float | None:
        """The seconds of learning of all stages, None if one of them is unknown."""
        seconds = [line.learning for line in self.stages]
        known = [value for value in seconds if value is not None]
        return sum(known) if known and len(known) == len(seconds) else None

    @property
    def passed(self) -> tuple[int, int] | None:
        """How many rows went through the model while it learned, (forward, backward)."""
        known = [line.passed for line in self.stages if line.passed]
        if not known or len(known) < len(self.stages):
            return None
        return sum(forward for forward, _ in known), sum(back for _, back in known)

    @property
    def remembered(self) -> int:
        """How many rows are in the memory of all stages."""
        return sum(line.remembered for line in self.stages)


def read(folders: Sequence[str | Path]) -> list[Run]:
    """Read every lineage at or under these folders, each once.

    Raises:
        PerdureError: there is none in a folder, or a lineage's files are damaged.
    """
    paths = [path for folder in folders for path in find(Path(folder))]
    paths = list({path.resolve(): path for path in paths}.values())
    above = os.path.commonpath([path.resolve().parent for path in paths])
    return [_run(path, os.path.relpath(path.resolve(), above)) for path in paths]


def find(folder: Path) -> list[Path]:
    """Return the lineages at or under a folder, sorted by name.

    Raises:
        PerdureError: there is none, or there is no such folder.
    """
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.glob("*/") if not p.name.startswith(".")]
        hint = f"; {nearest(folder.name, siblings)}" if siblings else ""
        raise PerdureError(f"{folder}: no such folder{hint}")
    lineages = sorted(
        path for path in _under(folder) if path == folder or merged_folder(path) is None
    )
    if not lineages:
        raise PerdureError(
            f"{folder}: no lineage in it (no lineage.yaml here or below); name a lineage's folder, "
            "or one that contains several"
        )
    return lineages


def _under(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if {"cells", "trials"} <= set(
            folders
        ):  # a comparison; trials only serve to choose settings
            folders.remove("trials")
        if "lineage.yaml" in files:
            folders.clear()
            yield Path(parent)


def _run(path: Path, label: str) -> Run:
    try:
        return _read(path, label)
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        where = getattr(error, "filename", None) or path
        raise PerdureError(
            f"{where}: missing or not as Perdure wrote it; run `perdure verify {path}` for details"
        ) from error


def _read(path: Path, label: str) -> Run:
    lineage = Lineage(path)
    config, matrix, times = lineage.config, lineage.matrix(), lineage.timings()
    stages = lineage.stages
    judged_stages = [
        (entry["stage"], judged) for entry in stages if (judged := lineage.verdict(entry))
    ]
    verdict, verdicts = stage_verdicts(judged_stages)
    peaks = [times.get(str(e["stage"]), {}).get("peak_memory_kib") for e in stages]
    return Run(
        path=path,
        label=label,
        method=method_of(lineage),
        seed=config.seed,
        base=lineage.pin["name"],
        settings=config.to_dict(),
        matrix=matrix,
        numbers=summary(matrix),
        scoring=_scoring(lineage),
        ledger=tuple(_line(lineage, entry, times) for entry in lineage.ledger),
        versions=stages[-1]["versions"] if stages else {},
        peak_mib=max((p for p in peaks if p), default=0) / 1024 or None,
        identified=tuple(
            importance
            for entry in stages
            if METHOD_STATE not in lineage.dropped_files(entry)
            and (importance := identified(lineage.file(entry, METHOD_STATE), entry["task"]["id"]))
        ),
        rerun=rerun(lineage),
        verdict=verdict,
        verdicts=verdicts,
        test_rows=_test_rows(lineage),
        sampled=lineage.sampled_cells(),
        samples=sample_answers(lineage),
        dev=_dev_curves(lineage),
        interference=tuple(found for entry in stages if (found := interference_of(entry))),
        tests={
            task["id"]: _drawn(lineage, task["test"])
            for entry in stages
            for task in learned_by(entry)
            if "test" in task
        },
    )


def _drawn(lineage: Lineage, split: dict[str, Any]) -> TestRows:
    """Return the test rows that a ledger line describes."""
    source, sha256 = dict(split["source"] or {}), split["sha256"]
    held_out = source.get("held_out")
    if held_out is None and source.get("limit") is None:
        return TestRows(sha256, drawn_from=sha256)
    source.pop("seed", None)
    if held_out is not None:
        source["held_out"] = {k: v for k, v in held_out.items() if k != "seed"}
    if "path" in source:
        source["path"] = os.path.normpath(lineage.path.resolve() / source["path"])
    return TestRows(sha256, drawn_from=digest(source))


def _dev_curves(lineage: Lineage) -> tuple[DevCurve, ...]:
    """Return what was measured on dev rows, for each stage that had some."""
    curves = []
    for entry in lineage.stages:
        if measured := lineage.scores(entry).get("dev"):
            metric = measured["metric"]
            curves.append(
                DevCurve(
                    task=entry["task"]["id"],
                    rows=measured["rows"],
                    metric=metric,
                    points=tuple((point["step"], point.get(metric)) for point in measured["curve"]),
                    best=measured["best"],
                    weights_of=measured["weights_of"],
                    stopped=measured["stopped"],
                )
            )
    return tuple(curves)


def _scoring(lineage: Lineage) -> dict[str, tuple[str, str]]:
    """Return the (mode, metric) of each task that was scored."""
    scoring = {}
    for entry in lineage.stages:
        for task, cell in lineage.scores(entry)["after"].items():
            if {"mode", "metric"} <= cell.keys():
                scoring[task] = (cell["mode"], cell["metric"])
    return scoring


def _test_rows(lineage: Lineage) -> dict[str, int]:
    """Return the number of test rows of each task that was scored."""
    return {
        task: cell.get("of", cell["rows"])
        for entry in lineage.stages
        for task, cell in lineage.scores(entry)["after"].items()
        if "rows" in cell
    }


def _line(lineage: Lineage, entry: dict[str, Any], times: dict[str, Any]) -> Line:
    stage = entry["stage"]
    is_refused = entry["verb"] == "refused"
    active = stage in {0, *(e["stage"] for e in lineage.stages)} and not is_refused
    verb = f"undo {entry['undone']}" if "undone" in entry and not is_refused else entry["verb"]
    line = Line(stage=stage, verb=verb, parent=entry["parent"], active=active)
    if "task" not in entry:
        return line
    task, train = entry["task"]["id"], entry["task"]["train"]
    line = replace(line, task=task, rows=train["rows"], sha256=train["sha256"])
    if is_refused:  # the timings by number are those of the stage that was learned in its place
        return replace(line, reasons=tuple(entry["reasons"]))
    timing = times.get(str(stage), {})
    seconds = stage_seconds(lineage).get(stage, {}) if timing else {}
    passes, memory = timing.get("rows"), lineage.file(entry, MEMORY)
    return replace(
        line,
        remembered=line_count(memory) if memory else 0,
        date=timing.get("date"),
        steps=timing.get("steps"),
        learning=seconds.get("learning"),
        scoring=seconds.get("scoring"),
        passed=(passes["forward"], passes["backward"]) if passes else None,
    )


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the values in nested mappings, `{"a": {"b": 1}}` as `("a.b", 1)`."""
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*path, str(key)))
    else:
        yield ".".join(path), value
