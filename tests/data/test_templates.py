import json

import pytest

from perdure.data.opening import file_split, open_split
from perdure.data.templates import make_templates
from perdure.errors import PerdureError


GIVEN = {"prompt": "Text: {text}\nMood {{x}}:", "completion": "{label}", "labels": ["bad", "good"]}


def row(raw, **overrides):
    templates = make_templates(GIVEN | overrides, "t")
    assert templates is not None
    return templates.row(raw, "t, row 1")


def test_columns_fill_the_templates_and_labels_name_the_answers():
    raw = {"text": "fine", "label": 1, "other": [1]}
    assert row(raw) == {"prompt": "Text: fine\nMood {x}:", "completion": "good"}
    assert row(raw | {"label": "1"})["completion"] == "good"  # a cell of a CSV is text
    assert row(raw, labels={1: "one"})["completion"] == "one"
    assert row(raw, labels=None)["completion"] == "1"
    assert row({"text": 1, "label": 0}, prompt="{label} {text}")["prompt"] == "bad 1"


def test_an_empty_cell_is_no_text_and_an_empty_prompt_an_error():
    assert row({"text": None, "label": 0})["prompt"] == "Text: \nMood {x}:"
    with pytest.raises(PerdureError, match="row 1: prompt is empty"):
        row({"text": None, "label": 0}, prompt="{text}")
    with pytest.raises(PerdureError, match="row 1: completion is empty"):
        row({"text": "fine", "label": float("nan")}, labels=None)


@pytest.mark.parametrize(
    "field",
    ["{label.__class__}", "{label[0]}", "{label!r}", "{label:>9}", "{}", "{ }", "{a.b!r:3}"],
)
def test_nothing_but_a_columns_name_stands_in_braces(field):
    with pytest.raises(PerdureError, match=r"t: completion: .* is no plain column name") as error:
        make_templates(GIVEN | {"completion": field}, "t")
    assert field in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "error_line"),
    [
        ({"completion": None}, "prompt and completion go together"),
        ({"prompt": 3}, "prompt is 3"),
        ({"prompt": "{text"}, "t: prompt: expected '}'"),
        ({"labels": "bad"}, "a list of names or a mapping"),
        ({"labels": 5}, "a list of names or a mapping to names, got 5"),
        ({"labels": [False, True]}, "labels: False is not text; put the names in quotes"),
    ],
)
def test_templates_that_are_none_are_errors(overrides, error_line):
    with pytest.raises(PerdureError, match=error_line):
        make_templates(GIVEN | overrides, "t")


@pytest.mark.parametrize(
    ("raw", "error_line"),
    [
        ({"txt": "a", "label": 1}, "no column 'text'; did you mean 'txt'"),
        ({"text": "a", "label": 2}, "label 2 has no name in labels; valid: 0, 1"),
        ({"text": ["a"], "label": 1}, "column 'text' holds a list"),
        ("a", "expected an object"),
    ],
)
def test_a_record_that_does_not_fit_is_an_error_that_names_it(raw, error_line):
    with pytest.raises(PerdureError, match=error_line) as error:
        row(raw)
    assert str(error.value).startswith("t, row 1: ")


def test_no_template_is_none():
    assert make_templates({"path": "x"}, "t") is None


def test_a_file_goes_through_templates_and_its_source_makes_the_rows_again(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(9)))
    split = file_split({"path": str(path), **GIVEN}, 4, 3)
    assert len(split.rows) == 4
    assert {row["completion"] for row in split.rows} <= {"good", "bad"}
    assert split.source == {
        "path": str(path),
        **GIVEN,
        "labels": {"0": "bad", "1": "good"},
        "limit": 4,
        "seed": 3,
    }
    assert open_split(json.loads(json.dumps(split.source))) == split


def test_a_plain_mapping_is_a_plain_path(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    split = file_split({"path": str(path)}, None, 0)
    assert split == file_split(path, None, 0)
    assert split.source == {"path": str(path), "limit": None, "seed": 0}


@pytest.mark.parametrize(
    ("mapping", "error_line"),
    [
        ({"path": "a.csv", "promt": "x"}, "rows of a.csv: unknown key 'promt'; did you mean 'pro"),
        ({"path": "a.csv", "split": "x"}, "unknown key 'split'"),
        ({"file": "a.csv"}, "expected path or hub"),
        ({"hub": 3}, "expected path or hub"),
    ],
)
def test_a_mapping_that_names_no_rows_is_an_error(mapping, error_line):
    with pytest.raises(PerdureError, match=error_line):
        file_split(mapping, None, 0)
