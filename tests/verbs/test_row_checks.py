"""What is said of rows before they are learned, by every verb that learns."""

import json
from dataclasses import replace

import pytest

from command import perdure, refused
from perdure.config import load_config
from perdure.data.stream import load_stream
from perdure.data.task import Split
from perdure.lineage.lineage import Lineage
from perdure.lineage.sources import reopen
from perdure.prepare import check_tasks, prepare
from tiny import save_tiny, tiny_rows


pytestmark = pytest.mark.own


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A base, and a task that repeats a train row in train and in test, with a column too many."""
    monkeypatch.chdir(tmp_path)
    save_tiny("causal", tmp_path / "base")
    rows = [row | {"id": i} for i, row in enumerate(tiny_rows("colour", 24))]
    write(tmp_path / "a.jsonl", [*rows, rows[3]])
    write(tmp_path / "b.jsonl", [rows[5], {"prompt": "new " * 90, "completion": "purple"}])
    return tmp_path


def config(**overrides):
    tasks = [{"name": "colour", "train": "a.jsonl", "test": "b.jsonl"}]
    return load_config({"base": "base", "tasks": tasks, "max_length": 64, **overrides})


def test_each_check_is_a_line(folder):
    settings = config()
    lines = check_tasks(prepare(settings), load_stream(settings))
    assert lines[0] == "a.jsonl: left out, as they are not part of a row: id"
    assert lines[1] == "b.jsonl: left out, as they are not part of a row: id"
    warned = "\n".join(lines[2:])
    assert all(line.startswith("warning: colour") for line in lines[2:])
    assert "train rows repeat an earlier one (first: a.jsonl, row" in warned
    assert (
        "test rows have the same prompt as a train row (first: b.jsonl, row 1, as a.jsonl, row"
        in warned
    )
    assert "so it cannot be learned: 'purple' (first: b.jsonl, row 2)" in warned
    assert "colour test: 1 of 2 rows are longer than max_length: 64" in warned
    assert "(first: b.jsonl, row 2), so the middle of their prompt is cut" in warned


def test_a_dry_run_says_them_on_stderr(folder):
    assert perdure("init", "new", "--base", "base", "max_length=64").status == 0
    result = perdure(
        "learn", "new", "colour", "a.jsonl", "--test", "b.jsonl", "--dry-run", "--json"
    )
    assert result.status == 0, result.err
    assert "a.jsonl: left out, as they are not part of a row: id" in result.err
    assert "warning: colour: " in result.err
    assert json.loads(result.out)["tasks"][0]["task"] == "colour"


@pytest.mark.parametrize(
    ("arguments", "error_line"),
    [
        (
            ("colour", "a.jsonl", "--option", "red", "--option", "gren"),
            "not an option of task 'colour'",
        ),
        (("colour", "a.jsonl", "--option", ""), "an option is empty"),
        ((" ", "a.jsonl"), "a task's name is empty"),
        (("(general)", "a.jsonl"), "the name of the general rows"),
    ],
)
def test_what_cannot_be_right_is_refused(arguments, error_line, folder):
    assert perdure("init", "new", "--base", "base").status == 0
    refused(folder, "learn", "new", *arguments, names=(error_line,))


def test_test_rows_that_cannot_be_scored_are_refused_before_training(folder):
    call = {"function": {"name": "f", "arguments": {}}}
    call_turn = {"role": "assistant", "tool_calls": [call]}
    write(folder / "b.jsonl", [{"messages": [{"role": "user", "content": "a"}, call_turn]}])
    assert perdure("init", "new", "--base", "base").status == 0
    learn = ("learn", "new", "colour", "a.jsonl", "--test", "b.jsonl")
    refused(folder, *learn, names=("its answer calls a tool",))
    write(folder / "b.jsonl", [{"prompt": [{"role": "user", "content": "a"}], "completion": ["b"]}])
    refused(folder, *learn, names=("colour test, row 1", "chat template"))


@pytest.mark.parametrize("kind", ["causal"])
def test_test_rows_that_a_run_finds_changed_are_not_compared_with_earlier_scores(place):
    lineage, lines = Lineage("lineage"), []
    described = lineage.stages[0]["task"]
    (opened,) = (task for task in load_stream(lineage.config) if task.name == described["name"])
    assert reopen(lineage, described, None, lines.append, opened=opened) is opened
    other = replace(opened, test=Split(opened.test.rows[1:] + opened.test.rows[:1]))
    assert reopen(lineage, described, None, lines.append, opened=other) is None
    assert lines == ["warning: colour is not scored: its test rows have changed"]
