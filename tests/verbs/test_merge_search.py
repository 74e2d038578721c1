"""`merge --search`: a weight of an arrival that stays within the gate is looked for."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from test_merge_arrival import WEIGHTS, trained_adapter

from command import perdure, refused, tree
from perdure.api import configure, init, learn, log, merge, show, verify
from perdure.config import Gate
from perdure.errors import PerdureError, RefusedError
from perdure.lineage.lineage import Lineage
from perdure.measure.predictions import Predictions
from perdure.merging.model import Checkpoint
from perdure.merging.rules import make
from perdure.verbs import merge_search


pytestmark = [pytest.mark.own, pytest.mark.parametrize("kind", ["causal"])]

RULE = "task_arithmetic"
ROWS = 10  # test rows of each task


def kl_at(weight: float) -> float:
    """The KL of the lineage's next stage from the base, without a gate."""
    shutil.copytree("lineage", f"at-{weight}")
    merge([f"at-{weight}", "far"], rule=RULE, weights=[weight])
    return show(f"at-{weight}")["verdict"]["general"]["kl"]


@pytest.fixture
def gated(place) -> float:
    """The limit that the lineage's gate has for the KL, which is just above that at weight 1/4."""
    trained_adapter("far", 1, lora_alpha=60)
    limit = 1.01 * kl_at(0.25)
    configure("lineage", **{"gate.kl": limit})
    return limit


def test_the_largest_weight_within_the_gate_is_taken(gated, place):
    told = perdure("merge", "lineage", "far", "--rule", RULE, "--search")
    assert told.status == 0, told.err
    assert "search: weight 1: KL from the base: " in told.err
    assert "search: weight 0.5: KL from the base: " in told.err
    assert "search: weight 0.25: within the gate" in told.err
    entry = Lineage("lineage").stages[-1]
    assert (entry["weight"], entry["search"]) == (0.25, [1.0, 0.5, 0.25, 0.125])
    assert [trial["weight"] for trial in entry["trials"]] == [1.0, 0.5, 0.25]
    assert [bool(trial["reasons"]) for trial in entry["trials"]] == [True, True, False]
    assert entry["history"][-1]["weight"] == 0.25
    assert entry["files"][WEIGHTS] == Lineage("at-0.25").stages[-1]["files"][WEIGHTS]
    assert verify("lineage") == []
    shown = " ".join(perdure("show", "lineage").out.split())
    assert " weight 0.25 " in shown
    assert "weight 0.25: within the gate" in shown
    assert "already merged, as stage 3" in perdure(*_search()).err


def _search() -> tuple[str, ...]:
    return ("merge", "lineage", "far", "--rule", RULE, "--search")


@pytest.mark.slow
def test_if_no_weight_stays_within_the_gate_nothing_is_changed(place):
    trained_adapter("far", 1)
    configure("lineage", **{"gate.kl": 1e-9})
    before = tree(place)
    told = perdure(*_search())
    assert told.status == 3, told.err
    assert "with no weight of 1, 0.5, 0.25, 0.125 the stage stays within the gate" in told.err
    assert "nothing was changed" in told.err
    assert tree(place) == before


def test_a_stage_that_is_beyond_the_gate_already_is_told(place):
    merge(["lineage", trained_adapter("far", 1)], rule=RULE)
    configure("lineage", **{"gate.kl": 1e-9})
    told = perdure("merge", "lineage", trained_adapter("near", 2), "--rule", RULE, "--search")
    assert told.status == 3, told.err
    assert "warning: stage 3 itself is beyond the gate (KL from the base: " in told.err


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on_to_the_same_bytes(gated, place, monkeypatch):
    shutil.copytree("lineage", "whole")
    wanted = merge(["whole", "far"], rule=RULE, search=True)
    tried = []
    trial = merge_search.Search._trial

    def stopped(self, weight, *more):
        tried.append(weight)
        if weight == 0.25 and tried.count(0.25) == 1:
            raise KeyboardInterrupt
        return trial(self, weight, *more)

    monkeypatch.setattr(merge_search.Search, "_trial", stopped)
    with pytest.raises(KeyboardInterrupt):
        merge(["lineage", "far"], rule=RULE, search=True)
    entry = merge(["lineage", "far"], rule=RULE, search=True)
    assert tried == [1.0, 0.5, 0.25, 0.25]
    assert (entry["files"], entry["trials"]) == (wanted["files"], wanted["trials"])


def test_dev_rows_choose_if_there_are_some(place, monkeypatch):
    trained_adapter("far", 1)
    adapter = {"r": 4, "lora_alpha": 8}
    init("fresh", base="base", method="sequential", adapter=adapter, guard=None, max_length=64)
    configure("fresh", **{"gate.forgetting": 0.05})
    rows = Path("colour-train.jsonl").read_text().splitlines()
    Path("dev.jsonl").write_text("\n".join(rows[:7]) + "\n")
    tested = {"dev": "dev.jsonl", "test": "colour-test.jsonl"}
    merge(["fresh", "far"], name="colour", **tested)  # an arrival may have dev rows as well
    learn("fresh", "animal", "animal-train.jsonl", test="animal-test.jsonl")
    asked = []

    def score(base, task, config):
        """After the first trial, the answers to colour are wrong."""
        asked.append((task.name, len(task.test.rows)))
        right = float(not (task.name == "colour" and len(asked) == 3))
        count = len(task.test.rows)
        return {}, Predictions(["red"] * count, [right] * count)

    monkeypatch.setattr(merge_search, "score", score)
    lines: list[str] = []
    entry = merge(["fresh", "far"], rule=RULE, search=True, weights=[0.8], say=lines.append)
    assert asked == [("colour", 7), ("animal", ROWS)] * 3  # before, and after two trials
    assert entry["weight"] == 0.4
    assert entry["trials"][0] == {
        "weight": 0.8,
        "scores": {"colour": 0.0, "animal": 1.0},
        "reasons": ["colour fell from 1.000 to 0.000 (gate.forgetting is 0.05)"],
    }
    warning = "warning: animal: without dev rows, so the weight is chosen on the test rows"
    assert next(line for line in lines if "dev rows" in line).startswith(warning)
    assert sum("dev rows" in line for line in lines) == 1
    assert log("fresh")[-1]["scores"].keys() == {"colour", "animal", "far"}


@pytest.mark.slow
def test_whole_weights_are_those_of_the_weight_that_was_found(whole_place):
    trained_adapter("far", 1, lora_alpha=60)
    for weight in (0.5, 0.25):
        shutil.copytree("lineage", f"at-{weight}")
        merge([f"at-{weight}", "far"], rule="ties", weights=[weight])
    # TIES takes means, in which the newest stage is the first checkpoint.
    kl = [show(f"at-{weight}")["verdict"]["general"]["kl"] for weight in (0.5, 0.25)]
    assert kl[1] < kl[0]
    configure("lineage", **{"gate.kl": sum(kl) / 2})
    entry = merge(["lineage", "far"], rule="ties", search=True)
    assert entry["weight"] == 0.25
    wanted = Lineage("at-0.25").stages[-1]["files"]
    for name in ("model.safetensors", "merge.safetensors", "scores.json"):
        assert entry["files"][name] == wanted[name]


def test_a_search_that_cannot_be_is_refused(place):
    trained_adapter("far", 1)

    def bad(*words: str, options: tuple = ()) -> None:
        refused(place, "merge", "lineage", "far", "--search", *options, names=words)

    bad("lineage: has no gate", "perdure set lineage gate.forgetting=0.05")
    configure("lineage", **{"gate.kl": 1.0})
    bad("ema: the weight of an arrival that has none depends on", options=("--rule", "ema"))
    rule, gate = make("frank_wolfe"), Gate(kl=1.0)
    arrival = Checkpoint("far", None, Path("far"))
    with pytest.raises(PerdureError, match="frank_wolfe: learns the weight of an arrival on"):
        merge_search.weights_to_try(rule, arrival, gate, Path("lineage"))
    given = replace(arrival, weight=0.5)
    tried = merge_search.weights_to_try(rule, given, gate, Path("lineage"))
    assert tried == [0.5, 0.25, 0.125, 0.0625]
    bad(
        "weight: is 0, and a search only makes it smaller",
        options=("--rule", RULE, "--weight", "0"),
    )
    bad("search: is for a checkpoint that arrives", options=("--into", "new", "--base", "base"))


@pytest.mark.slow
def test_a_refused_arrival_names_the_search(place, monkeypatch):
    trained_adapter("far", 1)
    configure("lineage", **{"gate.kl": 1e-9})
    with pytest.raises(RefusedError, match="--search looks for a smaller weight within the gate"):
        merge(["lineage", "far"], rule=RULE)
    assert Lineage("lineage").ledger[-1]["verb"] == "refused"
    assert Lineage("lineage").ledger[-1]["weight"] is None

    def within(search, weight, *rest):
        return {"weight": weight, "scores": {}, "reasons": []}

    monkeypatch.setattr(merge_search.Search, "_trial", within)
    words = "although the search found weight 0.5 within the gate on its rows"
    with pytest.raises(RefusedError, match=words):
        merge(["lineage", "far"], rule=RULE, weights=[0.5], search=True)
    refusal = Lineage("lineage").ledger[-1]
    assert (refusal["weight"], len(refusal["trials"])) == (0.5, 1)


@pytest.mark.slow
def test_the_shares_of_a_searched_weight_are_those_of_that_weight(whole_place, monkeypatch):
    trained_adapter("far", 1, lora_alpha=60)
    configure("lineage", **{"gate.kl": 100.0})

    def quarter(search, weight, *rest):
        return {"weight": weight, "scores": {}, "reasons": [] if weight < 0.3 else ["too far"]}

    monkeypatch.setattr(merge_search.Search, "_trial", quarter)
    entry = merge(["lineage", "far"], rule="frank_wolfe", weights=[1.0], search=True)
    assert entry["weight"] == 0.25
    assert entry["coefficients"] == [0.75, 0.25]
