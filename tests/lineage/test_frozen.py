"""A lineage of format 1 that an early version wrote, which every later version must read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from perdure.api import answer, configure, learn, log, repair, revert, show, verify
from perdure.lineage.lineage import FORMAT, Lineage


FROZEN = Path(__file__).parent / "frozen" / "format1"


@pytest.fixture
def expected(tmp_path, monkeypatch) -> Any:
    """What must be said of the frozen lineage; a copy of it is in the working directory."""
    shutil.copytree(FROZEN, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return json.loads(Path("expected.json").read_text())


def test_it_opens_and_says_what_was_recorded(expected):
    assert FORMAT == 1  # a new format reads this one, and gets a frozen lineage of its own
    assert verify("lineage") == []
    lines = log("lineage")
    assert len(lines) == len(expected["log"])
    for line, recorded in zip(lines, expected["log"], strict=True):
        assert {key: line[key] for key in recorded} == recorded
    for recorded in expected["show"]:
        shown = show("lineage", recorded["stage"])
        assert {key: shown[key] for key in recorded} == recorded


def test_its_stages_give_the_recorded_answers(expected):
    for recorded in expected["answers"]:
        answers = answer("lineage", recorded["prompts"], stage=recorded["stage"])
        assert answers == recorded["answers"]


def test_it_goes_on(expected):
    configure("lineage", method=["replay", "ewc"], **{"training.num_train_epochs": 1})
    revert("lineage", 2)  # it has the state of `ewc`
    assert learn("lineage", "more", "left-train.jsonl", test="left-test.jsonl")["stage"] == 5
    assert [entry["stage"] for entry in Lineage("lineage").stages] == [1, 2, 5]
    assert verify("lineage") == []
    assert repair("lineage") == {"restored": [], "lost": [], "stage": 5}
