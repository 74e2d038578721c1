"""Old tasks that are scored on a sample, and scores that are not measured again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest

import perdure.train.stage as stage_module
from command import perdure
from perdure.api import evaluate, log, repair, report, revert, show, verify
from perdure.api import learn as learn_rows
from perdure.lineage.lineage import Lineage
from perdure.measure.matrix import backward_transfer
from perdure.measure.predictions import read_predictions
from perdure.measure.sampling import estimated, sampling_interval
from place import learned, setting_for
from tiny import tiny_rows


pytestmark = pytest.mark.own

SEQUENTIAL = {"memory": {"ratio": 0.0}, "method": "sequential", "max_length": 64}
TRAINING = {"learning_rate": 2e-2, "num_train_epochs": 6}


@pytest.fixture(scope="module")
def streams(tmp_path_factory) -> Path:
    """A folder with the lineages of a run: `sampled`, and `full`, which asks all test rows."""
    folder = tmp_path_factory.mktemp("streams")
    setting = {**setting_for("causal", folder, n=24), **SEQUENTIAL, "training": TRAINING}
    for seed, name in enumerate(("third", "fourth", "fifth"), start=2):
        for split, count in (("train", 24), ("test", 10)):
            rows = tiny_rows("colour", count, seed=2 * seed + (split == "test"))
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}-{split}.jsonl").write_text(lines)
        files = {split: str(folder / f"{name}-{split}.jsonl") for split in ("train", "test")}
        setting["tasks"].append({"name": name, **files})
    setting["tasks"].pop()  # for `learn`
    learned({**setting, "scoring": {"sample": 8}}, folder / "sampled")
    learned(setting, folder / "full")
    return folder


def answers_of(lineage: Path, stage: int):
    folder = lineage / Lineage(lineage).stage_entries[stage]["folder"]
    return read_predictions(folder / "predictions.json.gz")["after"]


def test_old_tasks_are_asked_a_sample_and_the_last_stage_asks_all(streams):
    sampled, full = Lineage(streams / "sampled"), Lineage(streams / "full")
    for number, share in ((2, 8), (3, 4)):
        entry = sampled.stage_entries[number]
        assert entry["sampled"] == 8
        cells = sampled.scores(entry)["after"]
        for name in entry["scores"]:
            is_old = name != entry["task"]["id"]
            asked = {key: cells[name].get(key) for key in ("rows", "of")}
            assert asked == ({"rows": share, "of": 10} if is_old else {"rows": 10, "of": None})
    assert "sampled" not in sampled.stage_entries[1]
    assert "sampled" not in sampled.stage_entries[4]
    assert sampled.matrix().rows[4] == full.matrix().rows[4]
    assert backward_transfer(sampled.matrix()) == backward_transfer(full.matrix())


def test_the_answers_are_those_to_the_same_rows_and_the_score_is_anchored(streams):
    for stage in (2, 3):
        cells = Lineage(streams / "sampled").scores(
            Lineage(streams / "sampled").stage_entries[stage]
        )["after"]
        everything, first = answers_of(streams / "full", stage), answers_of(streams / "full", 1)
        for name, answers in answers_of(streams / "sampled", stage).items():
            rows = answers.rows or list(range(10))
            assert answers.scores == [everything[name].scores[row] for row in rows]
            assert answers.answers == [everything[name].answers[row] for row in rows]
        colour = answers_of(streams / "sampled", stage)["colour"]
        at_first = [first["colour"].scores[row] for row in colour.rows or ()]
        score = estimated(colour.scores, at_first, fmean(first["colour"].scores))
        assert cells["colour"]["score"] == score
        interval = sampling_interval(score, len(colour.scores), 10)
        assert cells["colour"]["interval"] == [interval.low, interval.high]


def test_a_smaller_sample_is_part_of_the_larger_one_so_that_stages_are_paired(streams):
    two, three = (answers_of(streams / "sampled", stage)["colour"].rows for stage in (2, 3))
    assert set(three or ()) < set(two or ())
    change = show(streams / "sampled", 3)["verdict"]["old"]["colour"]
    assert (change["rows"], change["of"]) == (4, 10)
    assert "of" not in show(streams / "sampled", 3)["verdict"]["learned"]


def test_it_is_said_wherever_the_score_is(streams, tmp_path):
    lineage = streams / "sampled"
    assert [line["sampled"] for line in log(lineage)] == [
        *([], [], ["colour"], ["animal", "colour"], [])
    ]
    assert "colour ~" in perdure("log", lineage).out
    shown = perdure("show", lineage, "--stage", 3).out
    assert "4 of 10" in shown
    assert "95 % interval" in shown
    assert "a sample of 4 of 10" in shown
    assert perdure("show", lineage).out.count("sample") == 3  # of the verdict on four tasks
    card = (lineage / "stages/0003-third/README.md").read_text()
    assert "| 4 of 10 |" in card
    assert verify(lineage) == []
    report([lineage], tmp_path / "page.html")
    assert "estimated" in (tmp_path / "page.html").read_text()
    numbers = (tmp_path / "page.csv").read_text()
    assert numbers.count(",score_estimated,") == 3


def test_a_sample_that_cannot_show_a_loss_gets_a_warning(streams, monkeypatch):
    monkeypatch.chdir(streams)
    lineage = streams / "few"
    shutil.copytree(streams / "sampled", lineage)
    revert(lineage, to=2)
    perdure("set", lineage, "scoring.sample=3")
    rows = (streams / "fifth-train.jsonl", "--test", streams / "fifth-test.jsonl")
    result = perdure("learn", lineage, "fifth", *rows)
    assert "warning: scoring.sample=3: so few rows" in result.err + result.out
    assert "too few to show a loss" in result.out or "cannot show a loss" in result.out


def asked(monkeypatch) -> list[str]:
    """Record the tasks that are scored on all of their rows."""
    names: list[str] = []
    score: Callable = stage_module.evaluate

    def recorded(base, task, **settings):
        names.append(task.name)
        return score(base, task, **settings)

    monkeypatch.setattr(stage_module, "evaluate", recorded)
    return names


def test_learn_samples_unless_it_is_told_not_to(streams, monkeypatch):
    monkeypatch.chdir(streams)
    lineage = streams / "sampled"
    revert(lineage, to=2)
    rows = {"train": "fifth-train.jsonl", "test": "fifth-test.jsonl"}
    entry = learn_rows(lineage, "fifth", **rows)
    assert entry["sampled"] == 8
    assert all(cell["rows"] == 10 for cell in evaluate(lineage).values())
    folder = lineage / entry["folder"]
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "predictions.json.gz").unlink()
    repair(lineage)
    assert contents == {path.name: path.read_bytes() for path in folder.iterdir()}
    revert(lineage)
    whole = learn_rows(lineage, "fifth", **rows, full=True)
    assert "sampled" not in whole
    names = asked(monkeypatch)
    arguments = ("--test", rows["test"], "--full", "--json")
    result = perdure("learn", lineage, "sixth", rows["train"], *arguments)
    assert result.json["scores"].keys() == {"colour", "animal", "fifth", "sixth"}
    # The test rows of "sixth" are those of "fifth", which the same weights have answered.
    assert names == ["colour", "animal", "fifth", "sixth"]


def test_unchanged_weights_are_not_asked_again(streams, monkeypatch):
    monkeypatch.chdir(streams)
    lineage = streams / "full"
    rows = {"train": "fifth-train.jsonl", "test": "fifth-test.jsonl"}
    revert(lineage, to=2)
    names = asked(monkeypatch)
    first = learn_rows(lineage, "again", **rows)
    before = Lineage(lineage).scores(first)
    assert names == ["again", "again", "colour", "animal", "again"]  # before, base, and after
    revert(lineage)
    names.clear()
    second = learn_rows(lineage, "again", **rows, training={"max_steps": 1})
    assert names == ["colour", "animal", "again"]
    scores = Lineage(lineage).scores(second)
    assert (scores["before"], scores["base"]) == (before["before"], before["base"])
    assert show(lineage)["verdict"]["learned"]["before"] == before["before"]["again"]["score"]
    monkeypatch.undo()
    monkeypatch.chdir(streams)
    repair(lineage)
    assert verify(lineage) == []
