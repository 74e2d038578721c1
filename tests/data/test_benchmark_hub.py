"""The benchmarks' rows from the hub, which small made-up folders stand for."""

import json
import os
from pathlib import Path

import pytest
from hub_folder import write_dataset

from perdure.data.benchmarks import benchmark_split, benchmark_task, benchmark_tasks, from_hub
from perdure.data.benchmarks.recipes import RECIPES
from perdure.data.benchmarks.superni import APART, HUB, NAMES, ORDERS
from perdure.data.hub import address
from perdure.data.opening import open_split
from perdure.data.templates import make_templates
from perdure.errors import PerdureError


pytestmark = pytest.mark.own


REAL = Path(os.environ.get("PERDURE_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.fixture
def small(monkeypatch):
    for name, value in (("TRAIN", 12), ("DEV", 4), ("OF_A_CLASS", 2)):
        monkeypatch.setattr(from_hub, name, value)


def make_up(hub, task, rows=20, names=None, unlabelled=0):
    """A folder with the columns that the recipe reads; each text says its row and its label."""
    recipe, place = RECIPES[task], address("hub:" + RECIPES[task].test, "test")
    labels = list(recipe.answers)
    named = names or (labels if isinstance(labels[0], str) else None)
    templates = {"prompt": recipe.prompt(), "completion": f"{{{recipe.label}}}"}
    columns = make_templates(templates, "t").columns()[:-1]
    splits = {}
    for split in ("train", place["split"]):
        splits[split] = []
        for i in range(rows + unlabelled):
            label = labels[i % len(labels)] if i < rows else None
            value = -1 if label is None else named.index(label) if named else label
            texts = {column: f"{split} {i} <{label}> {column}" for column in columns}
            splits[split].append(texts | {recipe.label: value})
    config = place["config"] or "default"
    return write_dataset(hub / place["hub"], splits, (recipe.label, named), config)


@pytest.mark.parametrize("task", RECIPES)
def test_each_recipe_makes_rows_in_the_shape_of_the_folder_form(hub, small, task):
    make_up(hub, task)
    recipe = RECIPES[task]
    benchmark = benchmark_task(task)
    assert benchmark.options == recipe.shown()
    assert (len(benchmark.train.rows), len(benchmark.dev.rows)) == (12, 4)
    assert len(benchmark.test.rows) == min(20, 2 * len(recipe.answers))  # two of each class
    prompts = set()
    splits = (benchmark.train, benchmark.dev, benchmark.test)
    for split in splits:
        for row in split.rows:
            first, *body, last = row["prompt"].split("\n")
            assert first.endswith(f" Option: {', '.join(benchmark.options)}.")
            assert last == "Answer:"
            # What the made-up text says its label is, in the answer's words.
            label = next(label for label in recipe.answers if f"<{label}>" in body[0])
            assert row["completion"] == f" {recipe.answers[label]}"  # nothing else writes it
            prompts.add(row["prompt"])
        assert open_split(json.loads(json.dumps(split.source))) == split
    assert len(prompts) == sum(len(split.rows) for split in splits)


@pytest.mark.slow
def test_the_recipes_have_the_options_of_the_folder_form():
    if not (REAL / "long_sequence").is_dir():
        pytest.skip("the benchmarks' rows are not here: set PERDURE_DATA to their folder")
    for task in benchmark_tasks("long_sequence_1", REAL):
        assert RECIPES[task.name].shown() == task.options


def test_the_source_says_the_form_and_draws_as_for_a_folder(hub, small):
    make_up(hub, "rte")
    task = benchmark_task("rte", rows={"train": 5}, seed=3, instruction=False)
    assert len(task.train.rows) == 5
    assert task.train.rows[0]["prompt"].startswith("sentence 1: train ")
    assert not task.train.rows[0]["prompt"].endswith("Answer:")
    assert task.train.source == {
        "benchmark": "rte",
        "split": "train",
        "limit": 5,
        "seed": 3,
        "instruction": False,
        "from": "hub",
        "revision": None,
    }


def test_a_folder_is_used_if_there_is_one_and_asked_for_again(hub, small, monkeypatch):
    make_up(hub, "rte")
    source = benchmark_task("rte").test.source
    with pytest.raises(PerdureError, match="no file"):
        benchmark_task("rte", hub / "none")
    assert open_split(source, hub / "none").source == source  # what came from the hub stays so
    monkeypatch.setenv("PERDURE_DATA", "none")
    with pytest.raises(PerdureError, match="no file"):
        benchmark_task("rte")
    monkeypatch.delenv("PERDURE_DATA")
    folder = {key: value for key, value in source.items() if key not in ("from", "revision")}
    with pytest.raises(PerdureError, match="not part of Perdure; name their folder with --data"):
        open_split(folder)


def test_the_names_of_labels_count_and_not_their_order(hub, small):
    make_up(hub, "mnli", names=["contradiction", "entailment", "neutral"])
    for row in benchmark_task("mnli").test.rows:
        assert f"<{row['completion'].strip()}>" in row["prompt"].split("\n")[1]
    make_up(hub, "mnli", names=["entailment", "neutral", "contradiction", "maybe"])
    with pytest.raises(
        PerdureError, match="its labels are entailment, neutral, contradiction, may"
    ):
        benchmark_task("mnli")


def test_rows_without_a_label_are_left_out(hub, small):
    make_up(hub, "copa", rows=6, unlabelled=6)
    task = benchmark_task("copa")
    assert len(task.train.rows) == 6
    assert not any("None" in row["prompt"] for row in task.train.rows + task.test.rows)


def test_a_small_task_has_no_dev(hub, small):
    make_up(hub, "cb", rows=9)
    assert benchmark_task("cb").dev is None
    with pytest.raises(PerdureError, match="cb: its hub form has no dev rows"):
        benchmark_split("cb", "dev", form="hub")


def test_a_dataset_that_has_changed_is_an_error_that_says_so(hub, small):
    folder = make_up(hub, "agnews")
    for path in folder.glob("*.jsonl"):
        path.write_text(path.read_text().replace('"text"', '"body"'))
    (folder / "README.md").unlink()
    error_line = "agnews: hub:fancyzhx/ag_news:train: no column 'text'.*--data FOLDER"
    with pytest.raises(PerdureError, match=error_line):
        benchmark_task("agnews")


@pytest.fixture
def superni(hub):
    def write(task, rows):
        path = hub / HUB / "train" / f"{NAMES[task]}_train.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        common = {"task_name": NAMES[task], "id": "x", "definition": "Do it."}
        path.write_text("".join(json.dumps(common | row) + "\n" for row in rows))

    return write


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(200, (160, 20, 20)), (158, (126, 16, 16)), (424, (338, 43, 43)), (1500, (1000, 100, 100))],
)
def test_superni_has_the_published_sizes_and_disjoint_splits(superni, rows, sizes):
    superni("task1572", [{"inputs": f"i{i}", "targets": f"t{i}"} for i in range(rows)])
    task = benchmark_task("task1572")
    assert task.metric == "rouge_l"
    assert task.options is None
    assert tuple(len(split.rows) for split in (task.train, task.dev, task.test)) == sizes
    prompts = {row["prompt"] for split in (task.train, task.dev, task.test) for row in split.rows}
    assert len(prompts) == sum(sizes)
    assert open_split(task.test.source) == task.test


def test_superni_rows_have_the_shape_of_the_folder_form(superni):
    rows = [{"inputs": f"i{i}", "targets": target} for i in range(20) for target in ("POS", "P2")]
    superni("task363", [*rows, {"inputs": "x", "targets": ""}])
    task = benchmark_task("task363")
    assert task.metric == "exact_match"
    task_rows = task.train.rows + task.dev.rows + task.test.rows
    assert len(task_rows) == 20  # an input once, however many answers it has
    assert {row["completion"] for row in task_rows} == {" P"}
    assert not any("references" in row for row in task_rows)  # "POS" and "P2" have one first letter
    assert "[INS] Do it.\n [IN] i0\n [OUT]" in {row["prompt"] for row in task_rows}


def test_superni_rows_are_scored_on_all_their_right_answers(superni):
    answers = ("one", "two", "one")
    superni(
        "task1572", [{"inputs": f"i{i}", "targets": text} for i in range(20) for text in answers]
    )
    task = benchmark_task("task1572")
    assert {row["completion"] for row in task.train.rows + task.test.rows} == {" one"}
    assert all(row["references"] == ["two"] for row in task.test.rows + task.dev.rows)
    assert not any("references" in row for row in task.train.rows)  # which are only learned


@pytest.mark.parametrize("task", APART)
def test_a_superni_task_with_a_dataset_of_its_own(hub, task):
    text = "Definition: Do it.\n\nPositive Example 1 -\nInput: e\nOutput: f\n\n"
    text += "Now complete the following example -\nInput: {}\nOutput:"
    rows = [
        {"id": str(i), "input": text.format(f"i{i}\nj"), "output": [f"t{i}", "u"]}
        for i in range(20)
    ]
    write_dataset(hub / "Lots-of-LoRAs" / APART[task], {"train": rows})
    benchmark = benchmark_task(task)
    task_rows = benchmark.train.rows + benchmark.dev.rows + benchmark.test.rows
    letters = task == "task1687"
    completions = {row["prompt"]: row["completion"] for row in task_rows}
    prompt = "[INS] Do it.\n [IN] i3\nj\n [OUT]"
    assert completions[prompt] == (" t" if letters else " t3")
    assert len(task_rows) == 20
    assert benchmark.test.rows[0]["references"] == ["u"]
    assert open_split(benchmark.test.source) == benchmark.test


def test_every_superni_task_has_its_place_on_the_hub():
    assert set(ORDERS["superni_1"]) == set(NAMES) | set(APART)
