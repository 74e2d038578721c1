"""A short pass of `benchmarks/durability/damage.py`: no verb uses a damaged file without a word."""

import sys
from pathlib import Path

import pytest


sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "durability"))

import damage


pytestmark = pytest.mark.own


def test_no_verb_uses_a_damaged_file_without_a_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verbs = ["verify", "show", "learn"]
    results = damage.try_all(whole=False, flips=1, verbs=verbs, files="memory.jsonl")
    names = {name for name, *_ in results}
    assert names == {"stages/0001-colour/memory.jsonl", "stages/0002-animal/memory.jsonl"}
    assert len(results) == len(names) * 4 * len(verbs)
    assert damage.faults(results) == []


def test_a_fault_is_seen():
    same = ("stages/0001-colour/memory.jsonl", "removed", "verify", "same")
    silent = ("stages/0001-colour/memory.jsonl", "removed", "learn", "SILENT")
    refused = ("stages/0001-colour/memory.jsonl", "removed", "learn", "error")
    assert damage.faults([same, silent, refused]) == [same, silent]
