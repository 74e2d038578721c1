"""What the files of lineages say, as plain data; no model is loaded."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram.errors import EngramError, nearest
from engram.lineage.lineage import Lineage
from engram.measure.matrix import ScoreMatrix, summary
from engram.models.layout import MEMORY
from engram.reporting.importance import Identified, identified
from engram.reporting.rerun import Rerun, rerun
from engram.reporting.results import method_name, stage_seconds


@dataclass(frozen=True)
class Line:
    """A line of the ledger, with what timings.json knows of it."""

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
    passed: tuple[int, int] | None = None  # rows through the model, forward and back


@dataclass(frozen=True)
class Run:
    """A lineage. `scoring` holds (mode, metric) of each task, as far as it was scored."""

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

    @property
    def stages(self) -> list[Line]:
        """What the present model has learned."""
        made = {line.stage: line for line in reversed(self.ledger) if line.task}
        return [line for line in made.values() if line.active][::-1]

    @property
    def seconds(self) -> float | None:
        known = [line.learning for line in self.stages]
        return None if None in known or not known else sum(s for s in known if s is not None)

    @property
    def passed(self) -> tuple[int, int] | None:
        """Rows that went through the model while it learned, forward and back."""
        known = [line.passed for line in self.stages if line.passed]
        if not known or len(known) < len(self.stages):
            return None
        return sum(forward for forward, _ in known), sum(back for _, back in known)

    @property
    def remembered(self) -> int:
        return sum(line.remembered for line in self.stages)


def read(folders: Sequence[str | Path]) -> list[Run]:
    """Every lineage that is one of these folders or lies in one of them, each once.

    Raises:
        EngramError: a folder that holds none, or a lineage whose files are not whole.
    """
    paths = [path for folder in folders for path in find(Path(folder))]
    paths = list({path.resolve(): path for path in paths}.values())
    above = os.path.commonpath([path.resolve().parent for path in paths])
    return [_run(path, os.path.relpath(path.resolve(), above)) for path in paths]


def find(folder: Path) -> list[Path]:
    """The lineages at or under a folder, in the order of their names.

    Raises:
        EngramError: there is none.
    """
    if not folder.is_dir():
        beside = [p.name for p in folder.parent.glob("*/") if not p.name.startswith(".")]
        hint = f"; {nearest(folder.name, beside)}" if beside else ""
        raise EngramError(f"{folder}: no such folder{hint}")
    found = sorted(_under(folder))
    if not found:
        raise EngramError(
            f"{folder}: no lineage in it (no engram.yaml here or below); give a lineage's folder, "
            "or one that holds several"
        )
    return found


def _under(folder: Path) -> Iterator[Path]:
    for above, inside, files in os.walk(folder):
        inside[:] = [name for name in inside if not name.startswith(".")]
        if {"cells", "trials"} <= set(inside):  # a comparison: its trials only chose settings
            inside.remove("trials")
        if "engram.yaml" in files:
            inside.clear()
            yield Path(above)


def _run(path: Path, label: str) -> Run:
    try:
        return _read(path, label)
    except (OSError, json.JSONDecodeError, KeyError) as error:
        where = getattr(error, "filename", None) or path
        raise EngramError(
            f"{where}: missing or not as Engram wrote it; `engram verify {path}` says more"
        ) from error


def _read(path: Path, label: str) -> Run:
    lineage = Lineage(path)
    config, matrix, times = lineage.config, lineage.matrix(), lineage.timings()
    stages = lineage.stages
    peaks = [times.get(str(e["stage"]), {}).get("peak_memory_kib") for e in stages]
    return Run(
        path=path,
        label=label,
        method=method_name(config.method, config.mode),
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
            found for e in stages if (found := identified(lineage.folder(e), e["task"]["id"]))
        ),
        rerun=rerun(lineage),
    )


def _scoring(lineage: Lineage) -> dict[str, tuple[str, str]]:
    found = {}
    for entry in lineage.stages:
        for task, cell in lineage.scores(entry)["after"].items():
            if "mode" in cell:
                found[task] = (cell["mode"], cell["metric"])
    return found


def _line(lineage: Lineage, entry: dict[str, Any], times: dict[str, Any]) -> Line:
    stage = entry["stage"]
    active = stage in {0, *(e["stage"] for e in lineage.stages)}
    if "task" not in entry:
        return Line(stage, entry["verb"], entry["parent"], active)
    took, train = times.get(str(stage), {}), entry["task"]["train"]
    seconds = stage_seconds(lineage).get(stage, {}) if took else {}
    memory = lineage.folder(entry) / MEMORY
    return Line(
        stage,
        entry["verb"],
        entry["parent"],
        active,
        task=entry["task"]["id"],
        rows=train["rows"],
        sha256=train["sha256"],
        remembered=memory.read_bytes().count(b"\n") if memory.exists() else 0,
        date=took.get("date"),
        steps=took.get("steps"),
        learning=seconds.get("learning"),
        scoring=seconds.get("scoring"),
        passed=(took["rows"]["forward"], took["rows"]["backward"]) if "rows" in took else None,
    )
