"""`probe`: what stages make of rows beyond the tasks, on lineages of two learned tasks."""

import json
from pathlib import Path

import pytest

import perdure as package
from command import perdure, tree, write_rows
from perdure import PerdureError
from perdure.api import probe, revert
from perdure.data.rows import read_rows
from place import learn, learned, setting_for, task


pytestmark = pytest.mark.own


causal = pytest.mark.parametrize("kind", ["causal"])
generative = pytest.mark.parametrize("kind", ["causal", "seq2seq"])
FOILS = {"red": "cat", "green": "dog", "blue": "bird"}  # of colours, from the other task
KEYS = ["stage", "task", "loss", "forgetting", "recognition", "recall", "lag", "retention"]
KEYS += ["retainability"]


def with_foils(file: Path) -> list[dict]:
    """The rows of colour, each with an answer of the other task."""
    return [{**row, "foil": FOILS[row["completion"]]} for row in read_rows(file)]


@pytest.fixture
def facts(place) -> Path:
    """The rows that stage 1 learned."""
    return write_rows(Path("facts.jsonl"), with_foils(place / "colour-train.jsonl"))


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> dict:
    """The probe of a lineage that learns colour, and forgets it over animal."""
    folder = tmp_path_factory.mktemp("taught")
    setting = setting_for("causal", folder, n=24) | {"adapter": None}
    setting |= {"scoring": {"forward": False, "old": "last"}}
    training = {"learning_rate": 3e-3, "num_train_epochs": 16}
    lineage = learned({**setting, "training": training}, folder / "lineage")
    return package.probe(lineage.path, with_foils(folder / "colour-train.jsonl"), learned=1)


def test_the_loss_of_what_was_taught_falls_and_is_forgotten_over_the_next_task(taught):
    base, first, second = taught["stages"]
    assert base["loss"] > second["loss"] > 1.5 * first["loss"]
    assert base["forgetting"] == 0
    for stage in (first, second):
        assert stage["forgetting"] == stage["loss"] - base["loss"] < 0
    assert (base["recall"], second["recall"]) == (0, 0)
    assert first["recall"] > 0.9
    assert first["recognition"] == 1
    assert second["recognition"] == 0  # the foils are the answers that animal teaches
    assert taught["effectivity"]["mean"] > 3


def test_what_is_kept_is_told_beside_the_stage_that_learned(taught):
    base, first, second = taught["stages"]
    assert [s["lag"] for s in (base, first, second)] == [None, 0, 1]
    assert base["retention"] is base["retainability"] is None
    assert first["retention"] == {"recognition": 1.0, "recall": 1.0}
    assert second["retention"] == {"recognition": -1.0, "recall": 0.0}
    counts = {"outliers": 0, "not_learned": 0}
    assert first["retainability"] == {"mean": 1.0, "rows": 24, **counts}
    assert 0 < second["retainability"]["mean"] < 0.9


@generative
def test_what_a_stage_says_has_the_same_keys_everywhere(facts):
    report = probe("lineage", facts, learned=1)
    assert [list(stage) for stage in report["stages"]] == [KEYS] * 3
    assert [(s["stage"], s["task"]) for s in report["stages"]] == [
        (0, None),
        (1, "colour"),
        (2, "animal"),
    ]
    assert report["rows"] == report["foils"] == 24
    assert (report["learned"], report["truncated"]) == (1, 0)
    assert report["stages"][1]["loss"] < report["stages"][0]["loss"]
    for counts in (report["effectivity"], report["stages"][2]["retainability"]):
        assert sum(counts.get(key, 0) for key in ("rows", "outliers", "not_learned")) == 24


def test_without_foils_nothing_is_recognised(facts, kind):
    report = probe("lineage", "colour-train.jsonl")
    assert (report["foils"], report["learned"], report["effectivity"]) == (0, None, None)
    for stage in report["stages"]:
        assert stage["recognition"] is stage["lag"] is stage["retention"] is None


def test_it_reads_only_and_text_and_json_say_the_same(facts, kind):
    before = tree(Path())
    printed = perdure("probe", "lineage", facts, "--learned", 1, "--json")
    assert printed.json == json.loads(json.dumps(package.probe("lineage", facts, learned=1)))
    result = perdure("probe", "lineage", facts, "--learned", 1)
    assert (result.status, result.err) == (0, "")
    for words in ("base", "1 colour", "2 animal", "recognition kept", "24 rows, 24 foils"):
        assert words in result.out
    for stage in printed.json["stages"]:
        cell = "-" if stage["loss"] is None else f"{stage['loss']:.3f}"
        assert cell in result.out
    assert ("effectivity +" in result.out) == (kind != "encoder")
    assert "kept" not in perdure("probe", "lineage", facts).out
    assert tree(Path()) == before


@pytest.mark.parametrize("kind", ["encoder"])
def test_an_encoder_says_nothing_of_labels_that_it_has_not_learned(place):
    rows = [{**row, "foil": "green"} for row in read_rows("colour-train.jsonl")]
    report = probe("lineage", rows, learned=1)
    base, first, second = report["stages"]
    assert all(base[key] is None for key in KEYS[1:])
    assert first["loss"] > 0
    assert first["forgetting"] is None  # of the base nothing is known
    assert 0 <= first["recall"] <= 1
    assert 0 <= first["recognition"] <= 1
    assert first["retainability"] is report["effectivity"] is None
    assert second["retention"]["recall"] == pytest.approx(second["recall"] / first["recall"])
    animals = probe("lineage", "animal-train.jsonl", stages=[1, 2])["stages"]
    assert [stage["loss"] is None for stage in animals] == [True, False]
    assert probe("lineage", rows, stages=[0])["stages"][0]["loss"] is None
    with pytest.raises(PerdureError, match=r"the rows, row 1: 'rad' is .*did you mean 'red'"):
        probe("lineage", [{"prompt": "one", "completion": "rad"}])


@causal
def test_held_out_texts_have_a_loss_and_are_cut_to_fit(place):
    words = "one two three four five six left right up down "
    rows = [{"text": words * 8, "foil": words}, {"text": "red green blue"}, {"text": "red cat"}]
    report = probe("lineage", rows)
    assert (report["rows"], report["foils"], report["truncated"]) == (3, 1, 1)
    assert all(stage["loss"] > 0 and 0 <= stage["recall"] <= 1 for stage in report["stages"])
    write_rows(Path("texts.jsonl"), rows)
    assert "3 rows, 1 foil, 1 truncated" in perdure("probe", "lineage", "texts.jsonl").out


@causal
def test_chosen_stages_and_those_that_they_are_told_beside(facts):
    whole = probe("lineage", facts, learned=2)
    assert [s["stage"] for s in probe("lineage", facts, stages=[2])["stages"]] == [2]
    assert probe("lineage", facts, stages=[2])["stages"][0]["forgetting"] is None
    assert (
        probe("lineage", facts, stages=[2, 0])["stages"] == probe("lineage", facts)["stages"][::2]
    )
    beside = probe("lineage", facts, learned=2, stages=[0])
    assert beside["stages"] == whole["stages"]  # 1, before it, and 2
    printed = perdure("probe", "lineage", facts, "--stages", "0,2", "--json").json
    assert [stage["stage"] for stage in printed["stages"]] == [0, 2]


@causal
def test_the_stages_of_the_present_history_are_asked(facts):
    revert("lineage", 1)
    learn("lineage", task("animal", training={"learning_rate": 1e-3}))
    report = probe("lineage", facts, learned=1)
    assert [(s["stage"], s["lag"]) for s in report["stages"]] == [(0, None), (1, 0), (3, 1)]
    with pytest.raises(PerdureError, match="no stage 2 in the present history; valid: 0, 1, 3"):
        probe("lineage", facts, stages=[2])


@causal
def test_stages_whose_weights_are_gone_are_left_out_and_told(whole_place):
    learn("lineage", task("colour"))
    lines = []
    report = probe("lineage", "colour-train.jsonl", say=lines.append)
    assert [stage["stage"] for stage in report["stages"]] == [0, 2, 3]
    assert lines == ["warning: stages not probed, because their weights were removed: 1"]
    for arguments in ({"stages": [1]}, {"learned": 1}, {"learned": 2}):
        with pytest.raises(PerdureError, match="the weights of stage 1 were removed"):
            probe("lineage", "colour-train.jsonl", **arguments)


def test_where_each_task_begins_at_the_base_it_is_the_stage_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learned(setting_for("causal", tmp_path, n=16), "lineage", mode="per_task")
    report = probe("lineage", "animal-train.jsonl", learned=2, stages=[2])
    assert [stage["stage"] for stage in report["stages"]] == [0, 2]
    assert report["effectivity"]["mean"] > 0


@causal
def test_one_model_is_held_at_a_time(facts, monkeypatch):
    import gc
    import weakref

    from perdure.verbs import probe as module

    models, load = [], module.base_at

    def loaded(*arguments):
        gc.collect()
        assert all(model() is None for model in models)
        base = load(*arguments)
        models.append(weakref.ref(base.model))
        return base

    monkeypatch.setattr(module, "base_at", loaded)
    probe("lineage", facts)
    assert len(models) == 3
