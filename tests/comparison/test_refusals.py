"""Mistakes in a comparison get one line, and leave nothing on the disk."""

import pytest

from command import refused
from comparison.grids import grid_yaml
from perdure.comparison.grid import read_grid
from perdure.comparison.trials import Trials
from perdure.lineage.files import locked


pytestmark = pytest.mark.own


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
    refused(place, *yaml, "grid.adapter=[{target_modules: [nowhere]}]", names=("adapter: PEFT",))
    refused(place, *yaml, "grid.seed=[0, -1]", names=("seed: must be from 0",))
    refused(place, *yaml, "jobs=2", names=("jobs: unknown key; write --jobs",))
    ratio = "grid={memory.ratio: [0.1, 5]}"
    refused(place, *yaml, ratio, names=("memory.ratio: must be from 0 to 1",))
    refused(place, *yaml, "general.file=nowhere.jsonl", "grid.method=[replay]", names=("no file",))
    few = "choose={key: training.learning_rate, values: [1e-3], held_out: 0.99}"
    refused(place, *yaml, few, names=("of which 16 are to be held out",))


def test_tasks_of_one_name_or_of_a_name_that_leaves_the_folder_have_trial_rows_of_their_own(place):
    task = {"train": str(place / "animal-train.jsonl"), "test": str(place / "animal-test.jsonl")}
    tasks = [{"name": name, **task} for name in ("a", "a", "../../b")]
    choose = {"key": "training.learning_rate", "values": [1e-3]}
    path = grid_yaml(place, grid={"method": ["sequential"], "tasks": [tasks]}, choose=choose)
    grid = read_grid(path)
    trials = Trials(grid, grid.choose)
    before = set(place.rglob("*"))
    trials.write()
    names = sorted(p.name for p in set(place.rglob("*")) - before if p.suffix == ".jsonl")
    assert [name for name in names if "train" in name] == [
        "01-a-train.jsonl",
        "02-a-train.jsonl",
        "03-..-..-b-train.jsonl",
    ]
    assert all(p.is_relative_to(grid.folder) for p in set(place.rglob("*")) - before)


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
