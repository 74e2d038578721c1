"""What a stage records is checked before it is used: its hash is only that of the last writer."""

import json
import sys
from pathlib import Path

import pytest

from perdure.errors import PerdureError
from perdure.lineage.records import read_scores, read_verdict
from perdure.lineage.timings import read_timings
from perdure.reporting.verdict import losses, words


sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "durability"))

import fuzz_readers as valid


pytestmark = pytest.mark.own


def changed(document: dict, path: str, value: object) -> dict:
    document = json.loads(json.dumps(document))
    holder = document
    *keys, last = path.split(".")
    for key in keys:
        holder = holder[int(key)] if isinstance(holder, list) else holder[key]
    holder[last] = value
    return document


def test_scores_and_verdicts_are_read(tmp_path):
    file = tmp_path / "a.json"
    for read, document in (
        (read_scores, valid.SCORES),
        (read_verdict, valid.VERDICT),
        (read_verdict, {**valid.VERDICT, "general": valid.MEASURED, "learned": None}),
        (read_timings, valid.TIMINGS),
    ):
        file.write_text(json.dumps(document))
        assert read(file) == document


@pytest.mark.parametrize(
    ("read", "document", "path", "value", "words"),
    [
        (read_scores, valid.SCORES, "after", [], "after must be a mapping, got a list of 0"),
        (read_scores, valid.SCORES, "after.colour.score", "1", "after.colour.score must be a"),
        (read_scores, valid.SCORES, "dev.curve", [1], "dev.curve.0 must be a mapping"),
        (read_scores, valid.SCORES, "after.colour.score", float("nan"), "NaN is not JSON"),
        (read_verdict, valid.VERDICT, "lost", ["count"], "'count' is lost, but not in old"),
        (read_verdict, valid.VERDICT, "old.colour.p", None, "old.colour.p must be a finite number"),
        (read_verdict, valid.VERDICT, "general", {}, "general"),
        (read_verdict, valid.VERDICT, "general", {**valid.MEASURED, "rows": 0}, "general.rows"),
    ],
)
def test_records_of_another_shape_are_one_line(read, document, path, value, words, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(changed(document, path, value)))
    with pytest.raises(PerdureError) as caught:
        read(file)
    line = str(caught.value)
    assert line.startswith(f"{file}: ")
    assert words in line
    assert line.endswith("it is damaged, restore it from a copy")


@pytest.mark.parametrize(
    ("path", "value"),
    [("2.seconds", {"train": "1"}), ("2.rows", {"forward": 1}), ("2.seconds.train", 10**400)],
)
def test_timings_of_another_shape_are_damaged(path, value, tmp_path):
    file = tmp_path / "timings.json"
    file.write_text(json.dumps(changed(valid.TIMINGS, path, value)))
    assert read_timings(file) is None


def test_a_verdict_that_contradicts_itself_is_still_put_in_words():
    """Its checks are lost though no row was asked, and a task of lm-eval has no value before."""
    harness = {"arc": {**valid.HARNESS["arc"], "before": None}}
    general = {"unmeasured": "it was off", "lost": True, "lm_eval": harness}
    judged = {**valid.VERDICT, "general": general}
    assert not any("general ability: lost" in line for line in losses(judged))
    lines = [line for line, _ in words(judged, 2)]
    assert any("general ability: not measured, because it was off" in line for line in lines)
    assert any("acc no value -> 0.400" in line for line in lines)


def test_a_task_that_was_never_right_has_nothing_to_lose():
    change = {**valid.VERDICT["old"]["colour"], "fell": 0, "rose": 0, "collapse": None, "p": 1.0}
    scores = (("never", 0.0), ("half", 0.5))
    old = {name: {**change, "before": score, "after": score} for name, score in scores}
    judged = {**valid.VERDICT, "old": old, "lost": [], "lost_before": []}
    text = "\n".join(line for line, _ in words(judged, 2))
    assert "nothing to lose: never 0.000 -> 0.000" in text
    assert "kept: half 0.500 -> 0.500" in text
