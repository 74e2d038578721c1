"""`perdure rules`."""

import pytest

from command import perdure, refused
from perdure.merging.after import names as treatments
from perdure.merging.rules import names


pytestmark = pytest.mark.own


def test_the_rules_are_listed():
    told = perdure("rules")
    assert told.status == 0
    for name in [*names(), *treatments()]:
        assert f" {name} " in told.out
    described = perdure("rules", "--json").json
    assert [one["name"] for one in described if one["kind"] == "rule"] == names()
    assert [one["name"] for one in described if one["kind"] == "treatment"] == treatments()
    assert {one["name"] for one in described if one.get("adds_task_vectors")} == {
        "average",
        "ema",
        "frank_wolfe",
        "task_arithmetic",
    }


def test_a_rule_is_told_with_its_formula_its_keywords_and_what_it_keeps(tmp_path):
    told = perdure("rules", "ties")
    assert told.status == 0
    for words in ("s = sign(sum_i w_i tau'_i)", "density", "0.2", "4 tensors", "--rule ties"):
        assert words in told.out
    refused(tmp_path, "rules", "linear", names=("did you mean 'average'?",))
    refused(tmp_path, "rules", "intruders", names=("did you mean 'intruder'?",))
    told = perdure("rules", "lines")
    for words in ("alpha + beta l / (L - 1)", "beta", "0.5", "--after lines"):
        assert words in told.out
