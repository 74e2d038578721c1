import json

import pytest
from hub_folder import write_dataset

from perdure.data import hub as module
from perdure.data.hub import address, describe
from perdure.data.opening import file_split, open_split
from perdure.errors import PerdureError


MOOD = {"prompt": "{text} ?", "completion": "{label}"}


@pytest.fixture
def moods(hub):
    """acme/moods: two splits with named labels, the test's not published."""
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(10)]
    hidden = [{"text": "t", "label": 0}, {"text": "t", "label": -1}]
    splits = {"train": rows, "validation": rows[:3], "test": hidden}
    return write_dataset(hub / "acme" / "moods", splits, ["bad", "good"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hub:a/b", ("a/b", None, "validation", None)),
        ("hub:a/b:train", ("a/b", None, "train", None)),
        ("hub:a/b@v1:c:train[:10%]", ("a/b", "c", "train[:10%]", "v1")),
        ("hub:a/b@refs/convert/parquet", ("a/b", None, "validation", "refs/convert/parquet")),
        ("hub:./b:x[1:3]", ("./b", None, "x[1:3]", None)),
    ],
)
def test_an_address_says_dataset_config_split_and_revision(text, parts):
    assert tuple(address(text, "dev").values()) == parts


@pytest.mark.parametrize("text", ["hub:a", "hub:json", "hub:a/b:c:d:e", "hub:a/b::d", "hub:a/b:"])
def test_an_address_of_another_form_is_an_error(text):
    with pytest.raises(PerdureError, match="is written hub:OWNER/NAME, hub:OWNER/NAME:SPLIT"):
        address(text, "train")


def test_rows_of_a_dataset_are_those_of_a_file(hub):
    rows = [{"prompt": f"p{i}", "completion": "c", "id": i} for i in range(9)]
    folder = write_dataset(hub / "acme" / "plain", {"train": rows, "test": rows[:2]})
    split = file_split("hub:acme/plain", 5, 1)
    assert split.rows == file_split(folder / "default-train.jsonl", 5, 1).rows
    assert split.source == {
        "hub": "acme/plain",
        "config": None,
        "split": "train",
        "revision": None,
        "limit": 5,
        "seed": 1,
    }
    assert open_split(json.loads(json.dumps(split.source))) == split
    assert len(file_split("hub:acme/plain", None, 0, "test").rows) == 2
    assert len(file_split({"hub": "acme/plain", "split": "train[:3]"}, None, 0).rows) == 3


def test_labels_become_their_names_or_others(moods):
    split = file_split({"hub": "acme/moods", **MOOD}, None, 0)
    assert split.rows[1] == {"prompt": "t1 ?", "completion": "good"}
    renamed = file_split({"hub": "acme/moods", **MOOD, "labels": ["no", "yes"]}, 4, 0)
    assert {row["completion"] for row in renamed.rows} == {"no", "yes"}
    assert renamed.source["labels"] == {"0": "no", "1": "yes"}
    assert open_split(renamed.source) == renamed


def test_a_split_without_labels_is_an_error_that_names_the_row(moods):
    with pytest.raises(PerdureError, match="hub:acme/moods:test, row 2: label is -1, no label"):
        file_split({"hub": "acme/moods:test", **MOOD}, None, 0)


def test_a_row_keeps_its_number_when_some_are_drawn(hub):
    rows = [{"prompt": f"p{i}", "completion": "c"} for i in range(8)]
    folder = write_dataset(hub / "acme" / "plain", {"train": rows})
    last = int(file_split("hub:acme/plain", 4, 0).rows[-1]["prompt"][1:])
    rows[last]["completion"] = ""
    write_dataset(folder, {"train": rows})
    with pytest.raises(
        PerdureError, match=f"acme/plain:train, row {last + 1}: completion is empty"
    ):
        file_split("hub:acme/plain", 4, 0)


@pytest.mark.parametrize(
    ("source", "error_line"),
    [
        ("hub:acme/moods:tset", "hub:acme/moods:tset: no split 'tset'; did you mean 'test'"),
        ("hub:acme/moods:defualt:test", "no config 'defualt'; did you mean 'default'"),
        ("hub:acme/mood", "there is no folder acme/mood; did you mean 'acme/moods'"),
        ({"hub": "acme/moods", **MOOD, "prompt": "{txet}"}, "no column 'txet'; did you mean 'text"),
        ("hub:nobody/none:train", "hf download --repo-type dataset nobody/none --local-dir"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_nearest(moods, source, error_line):
    with pytest.raises(PerdureError, match=error_line) as error:
        file_split(source, None, 0)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("hub:")


def test_columns_that_are_no_row_are_an_error_that_names_them(hub):
    write_dataset(hub / "acme" / "odd", {"train": [{"q": "a", "a": "b"}]})
    with pytest.raises(
        PerdureError,
        match=r'its keys: q, a; make rows of them with prompt: "\{q\}", completion: "\{a\}"',
    ):
        file_split("hub:acme/odd", None, 0)


def test_the_config_must_be_named_where_there_are_several(hub):
    folder = write_dataset(hub / "acme" / "two", {"train": [{"text": "a"}]}, config="x")
    card = (folder / "README.md").read_text()
    again = card.split("configs:\n")[1].split("---")[0].replace("config_name: x", "config_name: y")
    (folder / "README.md").write_text(card.removesuffix("---\n") + again + "---\n")
    with pytest.raises(PerdureError, match="the config is missing; valid: x, y"):
        file_split("hub:acme/two", None, 0)
    assert file_split("hub:acme/two:y:train", None, 0).rows == ({"text": "a"},)


def test_no_code_of_a_dataset_is_run(hub):
    folder = hub / "acme" / "script"
    folder.mkdir(parents=True)
    (folder / "script.py").write_text("raise SystemExit(3)")
    with pytest.raises(PerdureError, match="its own script, which is never run"):
        file_split("hub:acme/script", None, 0)


def test_a_folder_without_data_and_a_broken_file_are_errors(hub):
    (hub / "acme" / "empty").mkdir(parents=True)
    with pytest.raises(PerdureError, match="hub:acme/empty:train: cannot be read"):
        file_split("hub:acme/empty", None, 0)
    (hub / "acme" / "empty" / "train.jsonl").write_text('{"text": \n')
    with pytest.raises(PerdureError, match=r"cannot be read \(JSON parse error"):
        file_split("hub:acme/empty", None, 0)


def test_a_changed_folder_gives_its_new_rows(hub):
    for text in ("one", "two"):
        write_dataset(hub / "acme" / "plain", {"train": [{"text": text * 9}] * len(text)})
        assert file_split("hub:acme/plain", None, 0).rows[0] == {"text": text * 9}


def test_the_commit_stands_in_the_source_and_is_what_is_loaded(hub, monkeypatch):
    import datasets
    import huggingface_hub

    revisions = []

    def load_dataset(name, config, split, revision, data_files):
        revisions.append(revision)
        return datasets.Dataset.from_list([{"text": f"{revision} {split}"}])

    class Api:
        def dataset_info(self, name, revision, timeout):
            revisions.append(revision)
            return type("Info", (), {"sha": "a" * 40})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    split = file_split("hub:owner/name@main", None, 0)
    assert split.source["revision"] == "a" * 40
    assert revisions == ["main", "a" * 40]
    assert open_split(split.source) == split
    assert revisions == ["main", "a" * 40, "a" * 40]  # a hash is not asked for again


def test_where_nobody_answers_the_revision_is_as_given():
    assert module._commit("owner/name", "v1") == "v1"
    assert module._commit("owner/name", None) is None


def test_a_dataset_is_called_as_users_write_it():
    assert describe("a/b", None, "train") == "hub:a/b:train"
    assert describe("a/b", "c", "train") == "hub:a/b:c:train"
