"""A checkpoint is used if it is complete and as it was written."""

from pathlib import Path

import pytest

from perdure.train.checkpoints import HASHES, last_checkpoint, seal


pytestmark = pytest.mark.own


@pytest.fixture
def work(tmp_path) -> Path:
    """Three checkpoints, of which the process was writing the last one when it stopped."""
    for step in (8, 10, 12):
        checkpoint = tmp_path / f"checkpoint-{step}"
        (checkpoint / "inner").mkdir(parents=True)
        for name in ("trained.safetensors", "inner/optimizer.pt"):
            (checkpoint / name).write_text(f"{name} {step}")
        if step < 12:
            seal(checkpoint)
    return tmp_path


def test_the_newest_complete_one_is_used_and_what_is_newer_is_deleted(work):
    lines: list[str] = []
    assert last_checkpoint(work, lines.append) == work / "checkpoint-10"
    assert lines == []
    assert sorted(path.name for path in work.iterdir()) == ["checkpoint-10", "checkpoint-8"]


@pytest.mark.parametrize("name", ["trained.safetensors", "inner/optimizer.pt", HASHES])
@pytest.mark.parametrize("damage", ["removed", "changed"])
def test_a_damaged_one_is_said_and_the_one_before_is_used(work, name, damage):
    file = work / "checkpoint-10" / name
    if damage == "removed":
        file.unlink()
    else:
        file.write_text(file.read_text()[:-1])
    lines: list[str] = []
    assert last_checkpoint(work, lines.append) == work / "checkpoint-8"
    if name != HASHES or damage == "changed":
        (line,) = lines
        assert line.startswith(f"checkpoint of step 10 is damaged ({name} ")


def test_without_a_good_one_there_is_none(work):
    for step in (8, 10):
        (work / f"checkpoint-{step}" / HASHES).write_text("[]")
    assert last_checkpoint(work) is None
    assert list(work.iterdir()) == []
