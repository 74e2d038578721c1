"""`learn ... training.KEY=VALUE`: a task's own training."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command import perdure
from perdure.api import revert, show
from perdure.lineage.lineage import Lineage
from place import learn, task


pytestmark = pytest.mark.own


causal = pytest.mark.parametrize("kind", ["causal"])


def weights(entry: dict) -> dict[str, torch.Tensor]:
    return load_file(Path("lineage", entry["folder"], "adapter_model.safetensors"))


@causal
def test_it_is_recorded_and_of_this_stage_alone(place):
    rows = ("animal-train.jsonl", "--test", "animal-test.jsonl")
    result = perdure("learn", "lineage", "animal", *rows, "training.learning_rate=1e-7", "--json")
    entry = result.json
    assert entry["task"]["training"] == {"learning_rate": 1e-7}
    assert entry["stage"] == 3  # the same rows as stage 2 learned, trained otherwise
    assert entry["task"]["id"] == "animal@3"
    line = json.loads(Path("lineage/ledger.jsonl").read_text().splitlines()[-1])
    assert line["task"]["training"] == {"learning_rate": 1e-7}
    assert "learning_rate 1e-07" in perdure("show", "lineage").out
    again = perdure("learn", "lineage", "animal", *rows, "training.learning_rate=1e-7")
    assert "already learned, as stage 3" in again.err
    before, after = weights(show("lineage", 2)), weights(entry)
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)
    plain = learn("lineage", task("colour"))
    assert plain["stage"] == 4
    assert "training" not in plain["task"]
    assert not all(torch.allclose(weights(plain)[n], after[n], atol=1e-3) for n in after)
    assert Lineage("lineage").config.training == {"learning_rate": 1e-2, "num_train_epochs": 1}


@causal
def test_the_lineages_own_said_again_changes_nothing(place, monkeypatch):
    """A task's training is laid over the run's: the same values give the same bytes."""
    revert("lineage", 1)
    first = learn("lineage", task("animal", {"learning_rate": 1e-2}))
    revert("lineage", 1)
    monkeypatch.setattr(Lineage, "next_stage", 3)
    Path("lineage/stages/0003-animal").rename("kept")
    second = learn("lineage", task("animal"))
    assert (
        first["files"]["adapter_model.safetensors"] == second["files"]["adapter_model.safetensors"]
    )
