"""Rows are counted by whoever passes them through the model, and the counts outlive a stop."""

import pytest

from perdure.api import run
from perdure.config import load_config
from place import learned, setting_for
from train.engine import Stop, Stopped


pytestmark = pytest.mark.own


ROWS = 24  # a task: 3 steps of 8 rows; 3 of them are remembered, and a step has each of these once
COUNTS = {  # forward and backward in the second stage
    "sequential": ("sequential", 24, 24),
    "replay": ({"replay": {"ratio": 0.5}}, 33, 33),
    "outer": ({"recurrent_kif": {"inner_steps": 2, "outer_steps": 1}}, 30, 30),  # 2 rounds of 3
    "teacher": ({"lwf": {"teacher": "previous"}}, 48, 24),
    "side": ("agem", 33, 33),
    "after": ({"ewc": {"rows": 5}}, 29, 29),
    "looked": ({"inflora": {"rows": 5}}, 34, 24),
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("passes")
    return setting_for("causal", folder, n=ROWS) | {"scoring": {"forward": False, "old": "last"}}


@pytest.mark.parametrize("kind", COUNTS)
def test_a_stage_says_how_many_rows_passed(kind, setting, tmp_path):
    method, forward, backward = COUNTS[kind]
    lineage = learned(setting, tmp_path / "lineage", method=method)
    assert lineage.timings()["2"]["rows"] == {"forward": forward, "backward": backward}
    assert lineage.timings()["2"]["steps"] == 3


def test_rows_that_are_looked_at_to_be_remembered_count_and_those_that_are_scored_do_not(
    setting, tmp_path
):
    memory = {"memory": {"ratio": 0.1, "choose": "surprise"}, "scoring": {"mode": "options"}}
    lineage = learned({**setting, **memory}, tmp_path / "lineage")
    assert lineage.timings()["1"]["rows"] == {"forward": 48, "backward": 24}


def test_what_is_trained_is_counted(setting, tmp_path):
    counts = [
        learned(setting, tmp_path / str(r), adapter={"r": r}, tasks=setting["tasks"][:1]).timings()[
            "1"
        ]["trainable"]
        for r in (2, 4)
    ]
    assert counts[1] == 2 * counts[0] > 0


def test_a_run_that_was_stopped_counts_what_one_that_was_not_does(setting, tmp_path):
    settings = {**setting, **{"method": "agem", "checkpoint_every": 1}}
    expected = learned(settings, tmp_path / "whole").timings()
    config = load_config({**settings, "lineage": str(tmp_path / "stopped")})
    with pytest.raises(Stopped):
        run(config, callbacks=[Stop(2)])
    again = run(load_config({**settings, "lineage": str(tmp_path / "stopped")})).timings()
    assert [again[n]["rows"] for n in "12"] == [expected[n]["rows"] for n in "12"]
