"""`--dev`: what is measured, kept, shown and refused by the verbs that learn."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from command import perdure, refused, write_rows
from perdure.api import revert
from perdure.config import Config
from perdure.data.task import Split, Task
from perdure.lineage.lineage import Lineage
from perdure.prepare.dev import with_dev_rows
from place import learn, task
from tiny import tiny_rows
from train.engine import Stop, Stopped


pytestmark = pytest.mark.own
causal = pytest.mark.parametrize("kind", ["causal"])
STEPS = ("training.eval_strategy=steps", "training.eval_steps=1")
ROWS = ("colour", "colour-train.jsonl", "--test", "colour-test.jsonl")


@pytest.fixture
def dev(place) -> Path:
    return write_rows(place / "dev.jsonl", tiny_rows("colour", 6, seed=2))


def scores(stage: int = 3) -> dict:
    folder = next(Path("lineage/stages").glob(f"{stage:04d}-*"))
    return json.loads((folder / "scores.json").read_text())


@causal
def test_dev_rows_are_measured_recorded_and_shown(place, dev):
    """24 rows in batches of 8 are three steps."""
    again = ("learn", "lineage", *ROWS, "--dev", dev, "training.num_train_epochs=1")
    (planned,) = perdure(*again, "--dry-run", "--json").json["tasks"]
    assert (planned["dev_rows"], planned["measurements"]) == (6, 1)
    result = perdure(*again)
    assert "colour@3: step 3: dev loss" in result.err
    measured = scores()["dev"]
    assert [point["step"] for point in measured["curve"]] == [3]
    assert (measured["rows"], measured["best"], measured["weights_of"]) == (6, 3, 3)
    entry = json.loads(Path("lineage/ledger.jsonl").read_text().splitlines()[-1])
    assert entry["task"]["dev"]["rows"] == 6
    shown = perdure("show", "lineage").out
    assert f"loss {measured['curve'][0]['loss']:.3g} at step 3 (the best)" in shown
    assert "already learned, as stage 3" in perdure(*again).err
    write_rows(dev, tiny_rows("colour", 5, seed=2))
    assert "already learned" not in perdure(*again).err


@causal
def test_measuring_ends_in_the_same_bytes(place, dev):
    shutil.copytree("lineage", "other")
    first = learn("lineage", task("colour"))
    measured = replace(task("colour"), dev=Split(tuple(tiny_rows("colour", 6, seed=2))))
    second = learn("other", measured)
    different = {name for name in first["files"] if first["files"][name] != second["files"][name]}
    assert different == {"scores.json"}


@causal
def test_the_score_of_the_task_can_decide(place, dev):
    keys = (*STEPS, "training.metric_for_best_model=score", "training.early_stopping_patience=1")
    result = perdure("learn", "lineage", *ROWS, "--dev", dev, "training.num_train_epochs=4", *keys)
    assert result.status == 0, result.err
    assert ", dev score " in result.err
    measured = scores()["dev"]
    values = [point["score"] for point in measured["curve"]]
    assert measured["metric"] == "score"
    assert all(value * 6 == pytest.approx(round(value * 6)) for value in values)
    assert measured["stopped"] == (len(values) < 12)


@causal
def test_a_killed_task_ends_in_the_same_bytes(place, dev, monkeypatch):
    """It dies between two checkpoints, after the best weights were kept."""
    monkeypatch.setattr(Lineage, "next_stage", 3)
    perdure("set", "lineage", "checkpoint_every=2")
    training = {"num_train_epochs": 4, "learning_rate": 0.1, "eval_steps": 1}
    training |= {"load_best_model_at_end": True}
    right = tiny_rows("colour", 6, seed=2)
    wrong = [{**row, "completion": "one"} for row in right]  # the loss rises while it learns
    rows = replace(task("colour", training), dev=Split(tuple(wrong)))
    straight = learn("lineage", rows)
    best = scores()["dev"]["weights_of"]
    assert best < 12
    revert("lineage", 2)
    Path("lineage/stages/0003-colour").rename("straight")
    with pytest.raises(Stopped):
        learn("lineage", rows, callbacks=[Stop(best + 1)])
    lines: list[str] = []
    resumed = learn("lineage", rows, say=lines.append)
    assert f"colour@3: going on from step {(best + 1) // 2 * 2}" in lines
    assert resumed["files"] == straight["files"]


@causal
def test_dev_rows_can_be_left_alone(place, dev):
    entry = perdure(
        "learn", "lineage", *ROWS, "--dev", dev, "training.eval_strategy=no", "--json"
    ).json
    assert "dev" not in entry["task"]
    assert "dev" not in scores()


def test_those_of_a_benchmark_are_measured_only_if_it_is_asked_for():
    rows = tuple(tiny_rows("colour", 4))
    of_benchmark = Split(rows, {"benchmark": "dbpedia", "split": "dev", "limit": None, "seed": 0})
    one, asked = task_with(of_benchmark), Config(training={"early_stopping_patience": 2})
    assert with_dev_rows(Config(), one).dev is None
    assert with_dev_rows(asked, one) == one
    own = task_with(Split(rows, {"path": "dev.jsonl", "limit": None, "seed": 0}))
    assert with_dev_rows(Config(), own) == own
    assert with_dev_rows(asked, replace(own, training={"eval_strategy": "no"})).dev is None


def task_with(dev: Split) -> Task:
    return Task("colour", train=Split(tuple(tiny_rows("colour", 4))), dev=dev)


@causal
@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["early_stopping_patience=0"], ("early_stopping_patience", "at least 1")),
        (["early_stopping_threshold=0.1"], ("without early_stopping_patience",)),
        (["eval_strategy=steps"], ("needs eval_steps",)),
        (["eval_strategy=epoch", "eval_steps=2"], ("leave one of them out",)),
        (["eval_strategy=epochs"], ("did you mean 'epoch'",)),
        (["eval_steps=1.5"], ("eval_steps", "a whole number")),
        (["eval_strategy=no", "early_stopping_patience=2"], ("leave out eval_strategy=no",)),
        (["metric_for_best_model=bleu"], ("'bleu'", "write loss, or score")),
        (["eval_on_start=true"], ("eval_on_start", "eval_strategy")),
        (["greater_is_better=true"], ("greater_is_better",)),
    ],
)
def test_settings_that_contradict_each_other_are_refused(place, dev, keys, names):
    words = [f"training.{key}" for key in keys]
    refused(place, "learn", "lineage", *ROWS, "--dev", dev, *words, names=names)


@causal
@pytest.mark.parametrize(
    "key",
    [
        "eval_strategy=epoch",
        "eval_steps=2",
        "load_best_model_at_end=true",
        "early_stopping_patience=2",
        "metric_for_best_model=score",
    ],
)
def test_settings_that_need_dev_rows_are_refused_without(place, key):
    names = ("task 'colour'", key.partition("=")[0], "needs dev rows", "--dev")
    refused(place, "learn", "lineage", *ROWS, f"training.{key}", names=names)


@causal
def test_a_run_refuses_a_task_without_dev_rows_and_other_rows_than_were_learned(place, dev):
    setting = {
        "base": "base",
        "tasks": [{"name": "colour", "train": "colour-train.jsonl", "dev": "dev.jsonl"}],
        "training": {"num_train_epochs": 1, "load_best_model_at_end": True},
        "max_completion_length": 4,
        "guard": None,
        "lineage": "run",
    }
    Path("run.yaml").write_text(json.dumps(setting))
    assert perdure("run", "run.yaml").status == 0
    write_rows(dev, tiny_rows("colour", 5, seed=2))
    refused(place, "run", "run.yaml", names=("stage 1", "with other dev rows of 'colour'"))
    del setting["tasks"][0]["dev"]
    Path("run.yaml").write_text(json.dumps(setting | {"lineage": "other"}))
    refused(place, "run", "run.yaml", names=("load_best_model_at_end", "needs dev rows", "`dev:`"))


@causal
def test_a_dev_answer_that_an_option_does_not_have_is_refused(place, dev):
    write_rows(dev, [{"prompt": "alpha : ", "completion": "cat"}])
    words = ("--option", "red", "--option", "green", "--option", "blue", "--dev", dev)
    refused(place, "learn", "lineage", *ROWS, *words, names=("'cat'", "not an option"))
