"""One run of a comparison: its lineage, its settings, and the record of its results."""

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from perdure.config import TOGETHER, Config, deciding_keys, load_config
from perdure.errors import PerdureError
from perdure.lineage.files import dump, line_count, write_text
from perdure.lineage.history import learned_by
from perdure.lineage.lineage import Lineage
from perdure.lineage.settings import FREE
from perdure.measure.matrix import summary, to_dict
from perdure.methods import make
from perdure.models.layout import MEMORY, MERGE_STATE, METHOD_STATE
from perdure.parsing import read_json
from perdure.reporting.outcomes import stage_verdicts
from perdure.reporting.results import stage_seconds, with_experts
from perdure.seeds import digest


# What a record has of the guard's figures (`measure.guard`).
GUARD = ("rows", "passed_by_reference", "fell", "rose", "p", "kl", "lost", "judged")


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a comparison.

    Args:
        line: the name of the line of the table.
        order: the name of the stream.
        seed: the seed.
        settings: the keys of a run, without `lineage`.
        kind: the folder of the cell in the comparison: `cells` or `trials`.
        rows_digest: for trials, a hash of the settings that decide their rows.
        constant: whether each task's most common answer is scored. Such a cell does not run and has
            no files; its record is computed from the rows.
    """

    line: str
    order: str
    seed: int
    settings: dict[str, Any]
    kind: str = "cells"
    rows_digest: str = ""
    constant: bool = False

    @property
    def title(self) -> str:
        return f"{self.line}, {self.order}, seed {self.seed}"

    @property
    def config(self) -> Config:
        return load_config(self.settings)

    @cached_property
    def digest(self) -> str:
        """The hash of everything that decides the cell's results, except the contents of files."""
        settings = self.config.to_dict()
        settings["training"] = deciding_keys(settings["training"])
        if self.rows_digest:  # it replaces the files of a trial, which the comparison writes itself
            del settings["tasks"]
        deciding = {k: v for k, v in settings.items() if k not in FREE}
        return digest(deciding, self.rows_digest, *(["constant"] if self.constant else []))

    @property
    def name(self) -> str:
        words = re.sub(r"[^\w.+=-]+", "-", f"{self.line}-{self.order}")[:80].strip("-")
        return f"{words}-{self.seed}-{self.digest[:8]}"

    def lineage(self, folder: Path) -> Path:
        return folder / self.kind / self.name

    def file(self, folder: Path, suffix: str) -> Path:
        """A file next to the lineage: the settings `.yaml`, the `.log`, or the record `.json`."""
        return folder / self.kind / f"{self.name}{suffix}"

    def write_settings(self, folder: Path) -> Path:
        """Write the YAML with which `perdure run` runs the cell, and return its path."""
        path = self.file(folder, ".yaml")
        settings = {**self.settings, "lineage": str(self.lineage(folder))}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        return path

    def record(self, folder: Path) -> dict[str, Any] | None:
        """The record of the finished cell; None if there is none with exactly these settings."""
        path = self.file(folder, ".json")
        if not path.exists():
            return None
        try:
            stored = read_json(path)
            return stored["record"] if stored["digest"] == self.digest else None
        except (ValueError, TypeError, KeyError):
            return None  # the file is damaged; it will be written again from the lineage

    def write_record(self, folder: Path) -> dict[str, Any]:
        """Write the record of the cell, whose run has ended, and return it."""
        cell_record = record(Lineage(self.lineage(folder)))
        text = dump({"digest": self.digest, "record": cell_record})
        write_text(self.file(folder, ".json"), text)
        return cell_record


def record(lineage: Lineage) -> dict[str, Any]:
    """The scores and costs of a run; `varying` has the costs that differ between identical runs."""
    parts = with_experts(lineage)
    times = [
        timings[s]
        for part in parts
        for timings in [part.timings()]
        for e in part.stages
        if (s := str(e["stage"])) in timings
    ]
    if len(times) < sum(len(part.stages) for part in parts):
        raise PerdureError(
            f"{lineage.path}: its timings.json is damaged, so its costs are unknown; move this "
            "folder away, so that its run is repeated"
        )
    seconds = [s for part in parts for s in stage_seconds(part).values()]
    learned = [t for t in times if "rows" in t]  # a stage that was merged has learned nothing
    cells = [cell for e in lineage.stages for cell in lineage.scores(e)["after"].values()]
    return {
        **summary(lineage.matrix()),
        "matrix": to_dict(lineage.matrix()),
        **{key: sorted({c[key] for c in cells if key in c}) for key in ("mode", "metric")},
        "rows": {
            direction: sum(t["rows"][direction] for t in learned)
            for direction in ("forward", "backward")
        },
        "steps": sum(t["steps"] for t in learned),
        "trainable": max(t["trainable"] for t in learned),
        **_stored(lineage),
        **_lost(lineage),
        "varying": {
            "seconds": round(sum(s["learning"] for s in seconds), 2),
            "seconds_scoring": round(sum(s["scoring"] for s in seconds), 2),
            "cpu_seconds": round(sum(t["seconds"]["cpu"] for t in times), 2),
            "peak_memory_bytes": max(t["peak_memory_kib"] for t in times) * 1024,
        },
    }


def _lost(lineage: Lineage) -> dict[str, Any]:
    """The old tasks that the lineage has lost, and what the guard says of its last stage.

    Each is None if it was not measured.
    """
    stored = [(e["stage"], v) for e in lineage.stages if (v := lineage.verdict(e)) is not None]
    judged, _ = stage_verdicts(stored)
    general = stored[-1][1].get("general", {}) if stored else {}
    is_measured = "fell" in general
    return {
        "lost_tasks": list(judged.lost) if judged.measured else None,
        "general": {key: general[key] for key in GUARD} if is_measured else None,
    }


def _stored(lineage: Lineage) -> dict[str, int | None]:
    """What the next task would need besides the model: remembered rows and tensors of methods.

    The mode `joint` learns all old rows again; their size in bytes is not known to the lineage.
    """
    stages = lineage.stages
    if lineage.config.mode in TOGETHER:
        return {
            "stored_rows": sum(task["train"]["rows"] for e in stages for task in learned_by(e)),
            "stored_bytes": None,
        }
    rehearses = any(method.rehearses for method in make(lineage.config.method))
    files = [file for entry in stages if rehearses and (file := lineage.file(entry, MEMORY))]
    rows = sum(line_count(file) for file in files)
    size = sum(file.stat().st_size for file in files)
    last = lineage.folder(stages[-1])
    states = [name for name in (METHOD_STATE, MERGE_STATE) if name in stages[-1]["files"]]
    return {
        "stored_rows": rows,
        "stored_bytes": size + sum(_tensors(last / name) for name in states),
    }


def _tensors(path: Path) -> int:
    """The bytes of a safetensors file's tensors, without its header."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        return os.fstat(file.fileno()).st_size - 8 - header
