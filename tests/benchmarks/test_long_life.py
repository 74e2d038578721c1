"""A lineage with a few stages, and everything that happens to one in between."""

import sys
from pathlib import Path

import pytest


sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "durability"))

import long_life
from small_lineage import workplace

from perdure import api


pytestmark = pytest.mark.own


@pytest.mark.filterwarnings("ignore")
def test_a_short_life_ends_without_a_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(workplace(tmp_path / "w"))
    life = long_life.Life(4, seed=0, every=1)
    life.live()
    life.operations.stop()
    assert life.events == {"set": 1, "revert": 1, "kill": 1, "compact": 1}
    before = long_life.size(Path("lineage"))
    api.compact("lineage")
    after = long_life.size(Path("lineage"))
    life.check()
    assert life.faults == []
    record = long_life.record(life, 0, before, after)
    assert record["bytes_after_compact"] < record["bytes_before_compact"]
    assert record["learn_last"] > record["train_last"] > 0
    api.revert("lineage")
    life.check()
    assert life.faults == ["3 active stages, not 4"]
