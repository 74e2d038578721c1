"""`evaluate --predictions`: the answers beside the rows, a JSON line each."""

import json
from pathlib import Path
from statistics import fmean

import pytest

from command import perdure, tree
from perdure import PerdureError
from perdure.api import evaluate, revert
from perdure.data.rows import read_rows


pytestmark = pytest.mark.own


causal = pytest.mark.parametrize("kind", ["causal"])


def said(file: str = "said.jsonl") -> list[dict]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


@pytest.mark.parametrize("stage", [None, 1, 0])
def test_they_agree_with_the_scores(place, kind, stage):
    cells = evaluate("lineage", stage, predictions="said.jsonl")
    lines, rows = said(), read_rows(Path("animal-test.jsonl"))
    assert cells == evaluate("lineage", stage)
    for name, cell in cells.items():
        scores = [line["score"] for line in lines if line["task"] == name]
        if cell["score"] is None:  # an encoder that has no label of the task yet
            assert (scores, kind) == ([], "encoder")
        else:
            assert fmean(scores) == cell["score"]
            assert len(scores) == cell["rows"] == 10
    of_animal = [line for line in lines if line["task"] == "animal"]
    for number, (line, row) in enumerate(zip(of_animal, rows, strict=False), 1):
        assert list(line) == ["task", "row", "prompt", "completion", "prediction", "score"]
        assert (line["row"], line["prompt"]) == (number, row["prompt"])
        assert line["score"] == float(line["prediction"] == row["completion"])


@causal
def test_on_the_command_line_for_a_task_and_a_mode(place):
    before = tree(place)
    arguments = ("--task", "animal", "--mode", "options", "--predictions", "said.jsonl")
    result = perdure("evaluate", "lineage", *arguments)
    assert result.status == 0, result.err
    assert {line["task"] for line in said()} == {"animal"}
    assert {line["prediction"] for line in said()} <= {"bird", "cat", "dog"}
    Path("said.jsonl").unlink()
    assert tree(place) == before


@causal
def test_rows_that_are_gone_or_reverted_have_none(place):
    Path("colour-test.jsonl").unlink()
    warned = []
    evaluate("lineage", predictions="said.jsonl", say=warned.append)
    assert {line["task"] for line in said()} == {"animal"}
    assert len(warned) == 1
    revert("lineage", 1)
    evaluate("lineage", predictions="said.jsonl")
    assert said() == []


@causal
def test_no_place_to_write_them(place):
    for file, why in (
        ("nowhere/said.jsonl", "there is no folder .*nowhere; create it"),
        ("base", "cannot be written; give another file"),
        ("base/config.json/said.jsonl", "there is no folder"),
    ):
        before = tree(place)
        with pytest.raises(PerdureError, match=f"{file}: {why}"):
            evaluate("lineage", predictions=file)
        assert tree(place) == before
