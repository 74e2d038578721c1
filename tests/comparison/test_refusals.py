"""Mistakes in a comparison get one line, and leave nothing on the disk."""

import pytest

from command import refused
from comparison.grids import grid_yaml
from engram.lineage.files import locked


@pytest.fixture
def place(tmp_path):
    grid_yaml(tmp_path)
    return tmp_path


def test_mistakes_get_one_line_and_leave_nothing(place):
    yaml = ("compare", place / "grid.yaml")
    refused(place, *yaml, "--jobs", 0, names=("jobs: must be at least 1, got 0",))
    refused(place, *yaml, "grid.sed=[1]", names=("'sed' is not a key of a run", "'seed'"))
    refused(place, *yaml, "grid.method=[reply]", names=("unknown method 'reply'", "'replay'"))
    refused(place, *yaml, "grid.base=[nowhere]", names=("no model could be loaded",))
    refused(place, *yaml, "compute_matched=true", names=("no recurrent_kif to match replay with",))
    tasks = "grid.tasks=[[{name: a, train: nowhere.jsonl}]]"
    refused(place, *yaml, tasks, names=("no file nowhere.jsonl",))
    trials = "choose={key: training.learning_rate, values: [-1]}"
    refused(place, *yaml, trials, names=("learning_rate must be a number above 0",))
    trials = "choose={key: seq, values: [1]}"
    refused(place, *yaml, trials, names=("'seq' is not a key to choose",))
    refused(place, "compare", place / "gird.yaml", names=("gird.yaml: no such file",))
    few = "choose={key: training.learning_rate, values: [1e-3], held_out: 0.99}"
    refused(place, *yaml, few, names=("of which 16 are to be held out",))


def test_a_folder_of_something_else_and_a_second_comparison_are_refused(place):
    refused(
        place,
        *("compare", place / "grid.yaml", f"lineage={place}/base"),
        names=("base: exists and is not a comparison", "lineage=FOLDER"),
    )
    (place / "out").mkdir()
    with locked(place / "out"):
        refused(place, "compare", place / "grid.yaml", names=("another process is writing",))


def test_a_row_without_a_prompt_cannot_be_held_out(place):
    (place / "animal-train.jsonl").write_text('{"text": "red"}\n' * 4)
    trials = "choose={key: training.learning_rate, values: [1e-3]}"
    refused(
        place,
        *("compare", place / "grid.yaml", trials, "scoring.mode=generate"),
        names=("animal test", "no prompt"),
    )
