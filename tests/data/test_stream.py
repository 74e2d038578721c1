import json

import pytest
from hub_folder import write_dataset

from perdure.config import load_config
from perdure.data.opening import open_split
from perdure.data.stream import load_stream
from perdure.errors import PerdureError


pytestmark = pytest.mark.own


ROWS = [{"prompt": f"p{i}", "completion": "ab"[i % 2]} for i in range(6)]


@pytest.fixture
def place(hub):
    for name in ("reviews.jsonl", "other.test.jsonl", "cats/train.jsonl"):
        path = hub / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    write_dataset(hub / "acme" / "dogs", {"train": ROWS, "validation": ROWS[:2], "test": ROWS[:3]})
    return hub


def stream(*tasks, **settings):
    return load_stream(load_config({"tasks": list(tasks), **settings}))


def test_a_task_is_called_after_its_rows_unless_it_has_a_name(place):
    trains = ["reviews.jsonl", "cats/train.jsonl", "hub:acme/dogs@main:test", {"hub": "acme/dogs"}]
    tasks = stream(*({"train": train} for train in trains), {"name": "x", "train": trains[0]})
    assert [task.name for task in tasks] == ["reviews", "cats", "dogs", "dogs", "x"]


def test_each_split_of_a_dataset_is_the_one_of_its_role(place):
    (task,) = stream({"train": "hub:acme/dogs", "dev": "hub:acme/dogs", "test": "hub:acme/dogs"})
    assert [len(split.rows) for split in (task.train, task.dev, task.test)] == [6, 2, 3]
    assert task.dev.source["split"] == "validation"


def test_limits_and_the_runs_seed_hold_for_datasets(place):
    (task,) = stream({"train": "hub:acme/dogs"}, rows={"train": 4}, seed=5)
    assert len(task.train.rows) == 4
    assert (task.train.source["limit"], task.train.source["seed"]) == (4, 5)


def test_a_task_may_have_training_settings_of_its_own(place):
    training = {"learning_rate": 1e-3, "max_steps": 2}
    tasks = stream({"train": "reviews.jsonl", "training": training}, {"train": "reviews.jsonl"})
    assert [task.training for task in tasks] == [training, {}]
    with pytest.raises(PerdureError, match="task reviews: training takes a mapping, got 3"):
        stream({"train": "reviews.jsonl", "training": 3})


@pytest.mark.parametrize(
    ("task", "error_line"),
    [
        ({"name": "x"}, "needs its train rows or the name of a benchmark"),
        ("reviews.jsonl", "needs its train rows"),
        ({"train": "reviews.jsonl", "trian": 1}, "task reviews: unknown key 'trian'; did you"),
        ({"name": "x", "trian": "r.jsonl"}, "task x: unknown key 'trian'; did you mean 'train'"),
        ({"benchmark": "dbpeda"}, "no benchmark has 'dbpeda'; did you mean 'dbpedia'"),
        ({"benchmark": "superni_1"}, "is an order of benchmark tasks; write tasks: superni_1"),
        ({"benchmark": "cb", "test": "reviews.jsonl"}, "a benchmark has its own rows"),
    ],
)
def test_a_task_that_is_none_is_an_error(place, task, error_line):
    with pytest.raises(PerdureError, match=error_line):
        stream(task)


@pytest.mark.parametrize("metric", [["rouge_l", "token_f1"], 5])
def test_a_metric_is_one_name(place, metric):
    with pytest.raises(PerdureError, match=r"task reviews: metric takes the name of one metric"):
        stream({"train": "reviews.jsonl", "metric": metric})


def test_options_are_compared_without_white_space_around_them(place):
    (task,) = stream({"train": "reviews.jsonl", "options": [" a", "b "]})
    assert task.answers() == ("a", "b")


def test_the_limit_of_test_rows_holds_for_rows_that_are_held_out(place):
    given = {"train": "reviews.jsonl", "hold_out": 0.5}
    (whole,), (few,) = stream(given), stream(given, rows={"test": 1})
    assert few.train == whole.train
    assert len(whole.test.rows) == 3
    assert few.test.rows[0] in whole.test.rows
    assert len(few.test.rows) == 1
    assert open_split(few.test.source).rows == few.test.rows
