"""Bad input of `probe`: one line, status 2, and nothing is changed."""

import shutil
from pathlib import Path

import pytest

from command import perdure, refused, workplace, write_rows


pytestmark = pytest.mark.own


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A workplace whose lineage has learned both tasks."""
    folder = workplace(tmp_path_factory.mktemp("made"))
    assert perdure("run", folder / "run.yaml").status == 0
    return folder


@pytest.fixture
def place(made, monkeypatch) -> Path:
    monkeypatch.chdir(made)
    return made


def test_a_lineage_or_a_file_by_almost_its_name(place):
    bad = ("probe", "linage", "colour.jsonl")
    refused(place, *bad, names=("not a lineage", "did you mean lineage?"))
    bad = ("probe", "lineage", "color.jsonl")
    refused(place, *bad, names=("no file color.jsonl", "did you mean 'colour.jsonl'?"))
    refused(place, "probe", "lineage", "run.yaml", names=("the formats of rows are .jsonl",))


@pytest.mark.parametrize("option", ["--stages", "--learned"])
def test_a_stage_that_is_not_there(place, option):
    words = ("lineage: no stage 7 in the present history", "valid: 0, 1, 2")
    refused(place, "probe", "lineage", "colour.jsonl", option, "7", names=words)
    words = ("no stage 12", "did you mean '2'?")
    refused(place, "probe", "lineage", "colour.jsonl", option, "12", names=words)


def test_stages_that_are_no_numbers(place):
    for stages in ("one", "0-2", "0,,2", ""):
        words = (f"--stages: {stages!r} is not a list of stages", "write it as 0,2,5")
        refused(place, "probe", "lineage", "colour.jsonl", "--stages", stages, names=words)


def test_the_base_was_taught_nothing(place):
    words = ("stage 0 is the base", "--learned is the stage that learned the rows")
    refused(place, "probe", "lineage", "colour.jsonl", "--learned", 0, names=words)


def test_rows_that_cannot_be_asked(place, tmp_path):
    good = {"prompt": "one", "completion": "two"}
    for row, words in (
        ({**good, "foil": 3}, ("row 2: foil must be text",)),
        ({"prompt": "one"}, ("row 2: completion is missing",)),
        ({"text": "one two"}, ("row 2: rows of text cannot be mixed with others",)),
        ({**good, "completion": "one " * 70}, ("row 2: the completion has 71 tokens", "raise it")),
        ({**good, "foil": "one " * 70}, ("with foils, row 2: the completion has 71 tokens",)),
    ):
        file = write_rows(tmp_path / "bad.jsonl", [good, row])
        refused(place, "probe", "lineage", file, names=(str(file), *words))


def test_a_base_that_is_another_one_now(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    assert perdure("rebase", "lineage", "base").status == 0
    Path("base/config.json").write_text(Path("base/config.json").read_text() + " ")
    words = ("config.json differs", "put its files back")
    refused(tmp_path / "here", "probe", "lineage", "colour.jsonl", names=words)
