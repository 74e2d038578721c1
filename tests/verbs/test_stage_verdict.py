"""The verdict that every stage carries."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from command import perdure
from perdure.api import evaluate, log, revert, show, verify
from perdure.config import Config
from perdure.lineage.files import hash_folder
from perdure.lineage.lineage import Lineage
from perdure.measure.predictions import read_predictions
from perdure.methods import make
from perdure.verbs.verdict import suggestion
from place import learn, learned, setting_for, task


pytestmark = pytest.mark.own

SEQUENTIAL = {"memory": {"ratio": 0.0}, "method": "sequential"}


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory):
    """A lineage that has learned colour, and then animal, in place of it."""
    folder = tmp_path_factory.mktemp("forgetful")
    setting = setting_for("causal", folder)
    training = {"learning_rate": 2e-2, "num_train_epochs": 15}
    learned({**setting, **SEQUENTIAL, "training": training}, folder / "lineage")
    return folder / "lineage"


def test_a_stage_says_what_it_cost(forgetful):
    first, second = (show(forgetful, stage)["verdict"] for stage in (1, 2))
    assert (first["task"], first["old"], first["lost"]) == ("colour", {}, [])
    assert second["learned"]["after"] > second["learned"]["before"]
    change = second["old"]["colour"]
    matrix = Lineage(forgetful).matrix()
    assert (change["before"], change["after"]) == (matrix.rows[1][0], matrix.rows[2][0])
    assert change["fell"] - change["rose"] == round(10 * (change["before"] - change["after"]))
    assert second["lost"] == ["colour"]
    assert "perdure revert FOLDER --to 1" in second["suggestion"]
    assert [line["lost"] for line in log(forgetful)] == [[], [], ["colour"]]
    assert show(forgetful, 0)["verdict"] is None


@pytest.mark.parametrize(
    ("method", "lost", "general", "change"),
    [
        ("sequential", [], True, "'method=[replay,kl_base]'` before the next try"),
        (["replay", "kl_base"], [], True, "or a larger strength of kl_base (now 0.2),"),
        (["replay", {"kl_base": {"strength": 0.5}}], [], True, "strength of kl_base (now 0.5),"),
        (["replay", "kl_base"], ["colour"], False, "a larger memory.ratio (now 0.02),"),
        (["replay", "kl_base"], ["colour"], True, "a larger memory.ratio (now 0.02),"),
        ("kl_base", ["colour"], False, "method=replay` (or recurrent_kif) before the next try"),
    ],
)
def test_what_is_suggested_fits_what_was_lost(method, lost, general, change):
    lineage: Any = SimpleNamespace(config=Config(), head=2)
    judged = {"learned": None, "lost": lost, "general": {"lost": general}}
    text = suggestion(lineage, judged, make(method), "learn")
    assert text is not None
    assert text.startswith("`perdure revert FOLDER --to 2` undoes the stage; ")
    assert text.endswith(f"{change} may keep more")


def test_a_stage_with_a_loss_has_the_same_bytes_wherever_it_lies(forgetful, tmp_path):
    setting = setting_for("causal", forgetful.parent)
    training = {"learning_rate": 2e-2, "num_train_epochs": 15}
    elsewhere = forgetful.with_name("another-lineage")
    learned({**setting, **SEQUENTIAL, "training": training}, elsewhere)
    stages = [hash_folder(lineage / "stages") for lineage in (forgetful, elsewhere)]
    assert stages[0] == stages[1]
    assert str(forgetful) not in (forgetful / "stages/0002-animal/README.md").read_text()


def test_the_answers_are_those_of_evaluate(forgetful, tmp_path):
    file = tmp_path / "answers.jsonl"
    evaluate(forgetful, predictions=file)
    stored = read_predictions(forgetful / "stages/0002-animal/predictions.json.gz")["after"]
    for name, predictions in stored.items():
        rows = map(json.loads, file.read_text().splitlines())
        of_task = [row for row in rows if row["task"] == name]
        assert [row["prediction"] for row in of_task] == predictions.answers
        assert [row["score"] for row in of_task] == predictions.scores
    assert sum(len(predictions.answers) for predictions in stored.values()) == 20


def test_the_command_line_leads_with_it(forgetful):
    text = perdure("show", forgetful).out
    assert "stage 2, animal: " in text
    assert "  lost: colour " in text
    assert f"`perdure revert {forgetful} --to 1`" in text
    assert "lost: colour" in perdure("log", forgetful).out


def test_the_rows_that_changed_are_listed_with_their_answers(forgetful):
    listed = show(forgetful, 2, flips=True)["flips"]
    changed = [row for row in listed if row["task"] != "(guard)"]
    assert listed[: len(changed)] == changed
    verdict = show(forgetful, 2)["verdict"]
    fell = [row for row in changed if row["score_after"] < row["score_before"]]
    assert changed[: len(fell)] == fell
    assert len(fell) == verdict["old"]["colour"]["fell"] + verdict["learned"]["fell"]
    for row in fell:
        assert (row["before"].strip(), row["task"]) == (row["right"].strip(), "colour")
        assert row["question"]
    printed = perdure("show", forgetful, "--flips").out
    assert "1 -> 0" in printed
    assert "no test row has another score" not in printed


def test_the_verdict_is_hashed_with_its_stage(forgetful):
    assert verify(forgetful) == []
    file = Path(forgetful / "stages/0002-animal/verdict.json")
    text = file.read_text()
    try:
        file.write_text(text.replace('"colour"', '"nothing"'))
        assert any("verdict.json" in line for line in verify(forgetful))
    finally:
        file.write_text(text)


def test_a_loss_is_said_at_once_and_a_reverted_stage_is_not_compared_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setting = setting_for("causal", tmp_path)
    training = {"learning_rate": 2e-2, "num_train_epochs": 15}
    settings = {**setting, **SEQUENTIAL, "training": training, "tasks": setting["tasks"][:1]}
    learned(settings, "lineage")
    lines = []
    learn("lineage", task("animal"), say=lines.append)
    assert any(line.startswith("warning: lost: colour ") for line in lines)
    before = show("lineage", 2)["verdict"]
    revert("lineage", to=1)
    learn("lineage", task("animal"))
    after = show("lineage", 3)["verdict"]
    assert after["old"]["colour"]["before"] == before["old"]["colour"]["before"]


def test_a_task_without_test_rows_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setting = setting_for("causal", tmp_path)
    first = {key: value for key, value in setting["tasks"][0].items() if key != "test"}
    learned({**setting, "tasks": [first, setting["tasks"][1]]}, "lineage")
    assert show("lineage", 1)["verdict"]["learned"] is None
    assert show("lineage", 2)["verdict"]["unmeasured"] == ["colour"]
    shown = perdure("show", "lineage").out
    assert "not measured, because there are no test rows, or they have changed: colour" in shown
