"""`verify`: nothing is said of a lineage as it was written, and every change is found."""

import json
from pathlib import Path

import pytest

from command import perdure, tree
from perdure import PerdureError
from perdure.api import revert, verify
from perdure.lineage.files import locked
from perdure.verbs.verify import NO_PLACE
from place import learn, task


pytestmark = pytest.mark.own


STAGE = Path("lineage/stages/0001-colour")
causal = pytest.mark.parametrize("kind", ["causal"])


def test_a_lineage_as_it_was_written(place):
    before = tree(place)
    assert verify("lineage") == []
    assert tree(place) == before
    result = perdure("verify", "lineage")
    assert (result.status, result.err) == (0, "")
    assert "ledger, base and 2 stages are as they were written" in result.out
    revert("lineage", 1)
    assert verify("lineage") == []


def test_whole_weights_of_which_the_older_are_gone(whole_place):
    assert verify("lineage") == []
    learn("lineage", task("colour"))
    assert not list(STAGE.glob("model*"))
    assert (STAGE / "scores.json").exists()
    assert verify("lineage") == []
    (STAGE / "scores.json").unlink()
    assert verify("lineage") == [f"{STAGE}/scores.json: missing"]


@pytest.mark.parametrize("kind", ["causal"])
def test_a_stage_that_another_process_is_committing_is_no_difference(place, monkeypatch):
    files = [Path("lineage") / name for name in ("ledger.jsonl", "newest.json")]
    before = [file.read_bytes() for file in files]
    learn("lineage", task("colour"))
    after = [file.read_bytes() for file in files]
    for file, content in zip(files, before, strict=True):
        file.write_bytes(content)

    def commit(seconds: float) -> None:
        for file, content in zip(files, after, strict=True):
            file.write_bytes(content)

    monkeypatch.setattr("time.sleep", commit)
    with locked(Path("lineage")):
        assert verify("lineage") == []
    for file, content in zip(files, before, strict=True):
        file.write_bytes(content)
    assert "of no stage in the ledger" in verify("lineage")[0]


def change(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@causal
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "memory.jsonl", "README.md"])
def test_a_changed_byte_of_a_stage(place, name):
    change(STAGE / name)
    assert verify("lineage") == [f"{STAGE / name}: changed"]


@causal
def test_a_missing_and_an_added_file_of_a_reverted_stage(place):
    revert("lineage", 0)
    (STAGE / "scores.json").unlink()
    (STAGE / "more.bin").write_text("x")
    assert verify("lineage") == [
        f"{STAGE}/scores.json: missing",
        f"{STAGE}/more.bin: added; {NO_PLACE}",
    ]


@causal
def test_a_stage_that_is_gone_and_one_of_nowhere(place):
    STAGE.rename("lineage/stages/0007-other")
    problems = verify("lineage")
    assert len(problems) == 9
    assert all(line.startswith(f"{STAGE}/") and "missing" in line for line in problems[:-1])
    assert problems[-1].startswith("lineage/stages/0007-other: of no stage in the ledger")


@causal
def test_a_changed_base(place):
    change(Path("base/model.safetensors"))
    Path("base/more.json").write_text("{}")
    (problem,) = verify("lineage")
    assert problem.startswith("base base: model.safetensors missing or changed; put it back, or")
    Path("base").rename("away")
    assert verify("lineage")[0].startswith("base 'base': no such folder")


@causal
def test_perdure_yaml_that_names_another_base(place):
    file = Path("lineage/lineage.yaml")
    file.write_text(file.read_text().replace("name: base", "name: other"))
    assert verify("lineage") == ["lineage/lineage.yaml: names another base than the ledger"]


@causal
def test_the_command_line_ends_with_status_1(place):
    change(STAGE / "memory.jsonl")
    result = perdure("verify", "lineage")
    assert (result.status, result.out) == (1, "")
    assert result.err == f"perdure: {STAGE}/memory.jsonl: changed\n"
    result = perdure("verify", "lineage", "--json")
    assert result.status == 1
    problems = [f"{STAGE}/memory.jsonl: changed"]
    assert result.json == {
        "lineage": "lineage",
        "ok": False,
        "problems": problems,
        "dropped": [],
    }


@causal
def test_a_changed_or_missing_ledger(place):
    file = Path("lineage/ledger.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    entry = json.loads(lines[1]) | {"method": "replay"}
    file.write_text("".join([lines[0], json.dumps(entry) + "\n", *lines[2:]]))
    with pytest.raises(PerdureError, match="line 3 does not follow the line before it"):
        verify("lineage")
    result = perdure("verify", "lineage")
    assert (result.status, result.err.count("\n")) == (2, 1)
    file.write_text("")
    with pytest.raises(PerdureError, match="missing or empty; restore it"):
        verify("lineage")
