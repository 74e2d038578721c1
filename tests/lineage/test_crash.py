"""A kill at any file operation leaves the old lineage or the new one, and it opens."""

import shutil
import sys
from pathlib import Path

import pytest


sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "durability"))

from operations import Operations, Stopped

from perdure.api import compact, repair
from perdure.config import load_config
from perdure.lineage.files import hash_folder
from perdure.lineage.ledger import differences_from_newest
from perdure.lineage.lineage import Lineage


pytestmark = pytest.mark.own

WEIGHTS = "adapter_model.safetensors"
PIN = {"name": "base", "files": {}}


def create(path: Path) -> None:
    """Make a lineage without stages, unless it is there."""
    if not (path / "lineage.yaml").exists():
        Lineage.create(path, load_config({"base": "base"}), PIN)


def commit(path: Path) -> None:
    """Add a stage as a verb does, unless it is there."""
    lineage = Lineage(path)
    lineage.tidy()
    if lineage.head:
        return
    built = lineage.work("0001-colour", "key").stage
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir()
    (built / "scores.json").write_text('{"after": {"colour": {"score": 1.0}}}\n')
    entry = stage_line("learn", 1, "colour")
    lineage.commit(built, {**entry, "scores": {"colour": 1.0}}, {})


def stage_line(verb: str, number: int, task: str) -> dict:
    """The ledger's line of a stage, without its files."""
    rows = {"source": None, "rows": 0, "sha256": "0" * 64}
    described = {"id": task, "name": task, "metric": "exact_match", "options": None}
    return {
        "stage": number,
        "verb": verb,
        "parent": number - 1,
        "kind": "adapter",
        "folder": f"stages/{number:04d}-{task}",
        "mode": "sequential",
        "method": "sequential",
        "task": {**described, "train": rows},
        "versions": {},
    }


def set_seed(path: Path) -> None:
    """Change a setting as `set` does, unless it has the new value."""
    lineage = Lineage(path)
    lineage.tidy()
    if lineage.settings["seed"] != 7:
        settings = {**lineage.settings, "seed": 7}
        line = {"stage": 0, "verb": "set", "parent": 0, "changed": {}}
        lineage.append({**line, "settings": settings})


def create_with_stages(path: Path) -> None:
    """Make a lineage of two stages that were adopted."""
    create(path)
    for number, task in enumerate(("colour", "animal"), start=1):
        lineage = Lineage(path)
        built = lineage.work(task, "key").stage
        built.mkdir()
        (built / WEIGHTS).write_bytes(b"weights")
        (built / "method.safetensors").write_bytes(b"state")
        lineage.commit(built, {**stage_line("adopt", number, task), "checkpoint": {}}, {})


def create_dropped(path: Path) -> None:
    """Make a lineage whose first stage has lost its weights to `compact`."""
    create_with_stages(path)
    drop(path)


def drop(path: Path) -> None:
    """Drop the weights of stage 1 with `compact`."""
    compact(path, [1])


def put_back(path: Path) -> None:
    """Keep the dropped weights of stage 1 again, which were put back from a copy."""
    lineage = Lineage(path)
    if lineage.is_gone(lineage.at(1)):
        (path / "stages/0001-colour" / WEIGHTS).write_bytes(b"weights")
        (path / "stages/0001-colour/method.safetensors").write_bytes(b"state")
    repair(path, stage=1)


def contents(path: Path) -> dict[str, str]:
    return {name: sha for name, sha in hash_folder(path).items() if name != "lock"}


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    operations = Operations(str(folder))
    operations.fsync = lambda descriptor: None  # no power line is cut here
    yield operations
    operations.stop()


@pytest.mark.parametrize(
    ("step", "before"),
    [
        (create, None),
        (commit, create),
        (set_seed, create),
        (drop, create_with_stages),
        (put_back, create_dropped),
    ],
)
def test_a_kill_at_any_file_operation(step, before, operations):
    folder = Path(operations.folder) / step.__name__
    folder.mkdir()
    copy, template = folder / "lineage", folder / "template"
    if before:
        before(template)

    def begin() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        if before:
            shutil.copytree(template, copy)

    begin()
    old_lines = len(Lineage(template).ledger) if before else 0
    operations.begin()
    step(copy)
    operations.stop()
    whole, names = contents(copy), operations.names
    assert len(names) > 5
    for number, name in enumerate(names, start=1):
        begin()
        operations.begin(number)
        with pytest.raises(Stopped):
            step(copy)
        operations.stop()
        if (copy / "lineage.yaml").exists():
            lineage = Lineage(copy)
            assert len(lineage.ledger) in (old_lines, old_lines + 1)
            assert all(lineage.folder(entry).is_dir() for entry in lineage.stages)
        step(copy)
        assert contents(copy) == whole, name
        assert differences_from_newest(copy / "ledger.jsonl") == []
