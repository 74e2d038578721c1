"""Every line of a ledger is what its verb writes, and its stages lead back to stage 0."""

import copy
import sys
from pathlib import Path

import pytest

from perdure.errors import PerdureError
from perdure.lineage.schema import check_ledger


sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "durability"))

import fuzz_readers


pytestmark = pytest.mark.own
LEDGER = Path("m/ledger.jsonl")
GENERATED = {"stream": "generated", "task": "topic", "split": "train", "seed": 0}
VERBS = ["init", "learn", "adopt", "refused", "set", "rebase"]
VERBS += ["compact", "repair", "revert", "merge", "revert"]


@pytest.fixture
def entries() -> list[dict]:
    """A line of each verb."""
    lines = copy.deepcopy(fuzz_readers.ledger())
    return [{**line, "previous": ""} for line in lines]


def problem(entries: list[dict]) -> str:
    with pytest.raises(PerdureError) as caught:
        check_ledger(entries, LEDGER)
    line = str(caught.value)
    assert line.endswith("; Perdure did not write this line, do not use the lineage")
    return line.removesuffix("; Perdure did not write this line, do not use the lineage")


def test_a_line_of_each_verb_is_accepted(entries):
    assert [entry["verb"] for entry in entries] == VERBS
    check_ledger(entries, LEDGER)


def test_a_ledger_of_the_first_releases_is_accepted(entries):
    """Its settings are a hash, or there are none."""
    entries[0]["settings"] = "0" * 64
    check_ledger(entries[:2], LEDGER)
    del entries[0]["settings"]
    check_ledger(entries[:2], LEDGER)


@pytest.mark.parametrize(
    ("line", "path", "value", "words"),
    [
        (10, "rule", {"ema": 1}, "rule.ema must be a mapping"),
        (10, "history", [{"weight": 1.0}], "history.0 has no key 'norm'"),
        (2, "stage", "1", "stage must be a whole number of at least 0, got '1'"),
        (2, "stage", -1, "stage must be a whole number of at least 0, got -1"),
        (2, "stage", True, "stage must be a whole number of at least 0, got True"),
        (2, "stage", 10**30, "got a number of more than 63 bits"),
        (2, "parent", None, "parent None is not a stage of a line before it"),
        (2, "verb", "lern", "verb 'lern' is unknown; did you mean 'learn'?"),
        (2, "verb", ["learn"], "verb \"['learn']\" is unknown"),
        (2, "kind", "pickle", "kind must be 'adapter' or 'weights', got pickle"),
        (2, "folder", "../x", "folder must be a stage's folder, stages/NNNN-NAME, got '../x'"),
        (2, "folder", "stages/0002-colour", "folder 'stages/0002-colour' is not that of stage 1"),
        (2, "dropped", ["stages/../../x"], "dropped.0 must be a stage's folder"),
        (2, "dropped", "stages/0001-colour", "dropped must be a list"),
        (2, "files", {"../a": "0" * 64}, "files.'../a' is a key, and must be the name of a file"),
        (2, "files", {"/a": "0" * 64}, "must be the name of a file in the stage's folder"),
        (2, "files", {"a": "0" * 63}, "files.a must be a SHA-256 in hex"),
        (2, "scores", {"a": float("inf")}, "scores.a must be a finite number or null, got inf"),
        (2, "scores", {"a": "0.5"}, "scores.a must be a finite number or null, got '0.5'"),
        (2, "task.id", "a\x1b[2J", "task.id must be a name without control characters"),
        (2, "task.options", "red", "task.options must be a list or null, got red"),
        (2, "task.train.rows", 1.5, "task.train.rows must be a whole number of at least 0"),
        (2, "task.train.source.limit", "3", "task.train.source"),
        (2, "task.train.source", {**GENERATED, "limit": None}, "task.train.source"),
        (2, "task.train.source", {"path": 5, "limit": None, "seed": 0}, "task.train.source"),
        (2, "method", [["replay"]], "method"),
        (2, "method", {"replay": 5}, "method.replay must be a mapping or null, got 5"),
        (2, "mode", "Joint", "mode must be"),
        (2, "with", [{"id": "a"}], "with.0 has no key 'metric'"),
        (2, "note", "x", "has a key note, which this version does not know"),
        (3, "checkpoint", None, "checkpoint must be a mapping, got null".replace("null", "None")),
        (4, "folder", "stages/0003-count", "folder must be a stage's folder, refused/NNNN-NAME"),
        (4, "reasons", [1], "reasons.0 must be a text, got 1"),
        (5, "changed", {"seed": [1]}, "changed.seed must be [old value, new value], got a list"),
        (6, "base", {"name": "b"}, "base has no key 'files'"),
        (9, "stage", 9, "stage 9 is not a stage of a line before it"),
        (7, "dropped", ["x"], "dropped.0 must be a stage's folder, stages/NNNN-NAME"),
        (2, "dropped", ["stages/0009-x"], "'stages/0009-x' is not the folder of a stage before it"),
        (8, "restored", ["stages/0009-x"], "is not the folder of a stage before it"),
        (8, "restored", ["../x"], "restored.0 must be a stage's folder, stages/NNNN-NAME"),
        (9, "parent", 9, "parent 9 is not a stage of a line before it"),
        (1, "stage", 1, "only the first line makes stage 0"),
        (1, "parent", 0, "only the first line makes stage 0"),
    ],
)
def test_a_wrong_value_is_refused_with_its_line_and_key(entries, line, path, value, words):
    holder = entries[line - 1]
    *keys, last = path.split(".")
    for key in keys:
        holder = holder[key]
    holder[last] = value
    found = problem(entries)
    assert found.startswith(f"m/ledger.jsonl, line {line}: ")
    assert words in found


@pytest.mark.parametrize("key", ["stage", "parent", "folder", "files", "task", "method"])
def test_a_key_that_is_missing_is_refused(entries, key):
    del entries[1][key]
    assert problem(entries) == f"m/ledger.jsonl, line 2: has no key {key!r}"


def test_parents_cannot_form_a_cycle(entries):
    first, second = entries[1], {**entries[1], "stage": 2, "folder": "stages/0002-colour"}
    for parent in (2, 3):
        assert "line 3: " in problem([entries[0], first, {**second, "parent": parent}])
    gap = {**second, "stage": 3, "folder": "stages/0003-colour", "parent": 1}
    assert "stage 3 must be above its parent 1 and at most 2" in problem([entries[0], first, gap])
    assert "only the first line" in problem([*entries[:2], entries[0]])
    assert "only the first line" in problem(entries[1:])
