"""The records of `benchmarks/speed.py` can be made, and say what they compare."""

import json
import sys
from pathlib import Path

import pytest


sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import speed


pytestmark = pytest.mark.own


def test_the_results_have_records_that_can_be_made_again():
    results = json.loads(speed.RESULTS.read_text(encoding="utf-8"))
    assert {record["name"] for record in results["records"]} == set(speed.RECORDS)
    assert all(r["low"] <= r["ratio"] <= r["high"] for r in results["records"])


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", speed.RECORDS)
def test_a_record_is_made(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = speed.measured(name, pairs=2)
    assert record["name"] == name
    assert 0 < record["low"] <= record["ratio"] <= record["high"]
