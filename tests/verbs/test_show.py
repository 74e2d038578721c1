"""`show`: what a stage is, for people and as JSON."""

import json
import re

import pytest

from command import perdure, tree
from perdure import PerdureError
from perdure.api import configure, revert, show
from perdure.lineage.lineage import Lineage
from perdure.reporting.results import method_in_words
from place import learn, task


pytestmark = pytest.mark.own


def test_the_newest_stage_and_the_one_below(place):
    newest, first, base = (show("lineage", stage) for stage in (None, 1, 0))
    assert [k["stage"] for k in (newest, first, base)] == [2, 1, 0]
    assert [k["newest"] for k in (newest, first, base)] == [True, False, False]
    assert all(k["active"] for k in (newest, first, base))
    assert newest["line_of"] == [0, 1, 2]
    assert newest["task"]["name"] == "animal"
    assert newest["task"]["train"]["rows"] == 24
    assert newest["folder"] == "stages/0002-animal"
    assert newest["remembered_rows"] == 3  # one of each answer
    assert set(newest["scores"]) == {"colour", "animal"}
    assert newest["base"] == {"name": "base"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:+]+", newest["date"])
    assert newest["steps"] == 3
    assert newest["settings"]["training"] == {
        "learning_rate": 1e-2,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
    }
    assert newest["settings"]["adapter"]["r"] == 8
    assert base["line_of"] == [0]


def test_text_and_json_say_the_same_and_change_nothing(place):
    before = tree(place)
    entry = perdure("show", "lineage", "--stage", 1, "--json").json
    assert entry == json.loads(json.dumps(show("lineage", 1)))
    text = perdure("show", "lineage", "--stage", 1).out
    loads = "base with the adapter lineage/stages/0001-colour"
    for words in ("1 (active)", "colour", entry["date"], "24 rows", "learning_rate 0.01", loads):
        assert words in text, words
    assert f"{entry['scores']['colour']:.3f}" in text
    assert "base > 1;" in text
    assert "0 (active)" in perdure("show", "lineage", "--stage", 0).out
    assert "2 (the newest)" in perdure("show", "lineage").out
    assert tree(place) == before


def test_a_method_is_shown_with_the_keywords_that_were_set():
    assert method_in_words("replay") == "replay"
    both = [{"replay": {"ratio": 0.25, "decay": None}}, {"kl_base": None}, "ewc"]
    assert method_in_words(both) == "replay (ratio 0.25, decay null) + kl_base + ewc"
    fused = {"recurrent_kif": {"preset": "paper", "fusion": {"both": [0.5, 1]}}}
    assert method_in_words(fused) == 'recurrent_kif (preset paper, fusion {"both": [0.5, 1]})'


def test_a_reverted_stage_is_said_to_be_one(place):
    revert("lineage", 1)
    reverted = show("lineage", 2)
    assert (reverted["active"], reverted["newest"]) == (False, False)
    assert "2 (reverted)" in perdure("show", "lineage", "--stage", 2).out
    assert show("lineage")["stage"] == 1
    assert show("lineage", 1)["newest"]


@pytest.mark.parametrize("kind", ["causal"])
def test_the_settings_of_the_base_are_those_it_was_made_with(place):
    assert show("lineage", 1)["changed"] == {}
    configure("lineage", method="replay")
    assert show("lineage", 1)["changed"] == {}
    assert perdure("init", "other", "--base", "base", "method=sequential").status == 0
    configure("other", method="replay")
    other = Lineage("other")
    assert other.config_at(other.ledger[0]).method == "sequential"


@pytest.mark.parametrize("kind", ["causal"])
def test_a_task_of_its_own_training_shows_it(place):
    learn("lineage", task("animal", training={"learning_rate": 0.5}))
    assert show("lineage")["task"]["training"] == {"learning_rate": 0.5}
    assert show("lineage")["settings"]["training"]["learning_rate"] == 0.5
    assert show("lineage")["settings"]["training"]["num_train_epochs"] == 1
    assert show("lineage", 2)["settings"]["training"]["learning_rate"] == 1e-2
    assert "learning_rate 0.5" in perdure("show", "lineage").out


@pytest.mark.parametrize("kind", ["causal"])
def test_an_adapter_of_another_type_has_its_own_settings_alone(place):
    assert perdure("init", "other", "--base", "base", "adapter.peft_type=IA3").status == 0
    learn("other", task("animal"))
    assert show("other")["settings"]["adapter"] == {"peft_type": "IA3"}


@pytest.mark.parametrize("kind", ["causal"])
def test_whole_weights_that_are_gone_are_said_to_be(whole_place):
    assert show("lineage", 1)["weights_kept"]
    assert show("lineage", 1)["settings"]["adapter"] is None
    assert (
        "lineage/stages/0001-colour (whole weights)" in perdure("show", "lineage", "--stage", 1).out
    )
    learn("lineage", task("colour"))
    assert not show("lineage", 1)["weights_kept"]
    assert show("lineage", 2)["weights_kept"]
    assert "its weights were removed" in perdure("show", "lineage", "--stage", 1).out


@pytest.mark.parametrize("kind", ["causal"])
def test_no_such_stage(place):
    with pytest.raises(PerdureError, match="no stage 7; valid: 0, 1, 2"):
        show("lineage", 7)
