"""JSON and YAML that may be damaged or a stranger's are read, or refused for a reason."""

import os
import tracemalloc

import pytest
import yaml

from perdure import parsing
from perdure.data.files import read_records
from perdure.errors import PerdureError
from perdure.parsing import (
    MOST_NESTED,
    UnreadableError,
    parse_json,
    parse_yaml,
    read_json,
    read_whole,
)


pytestmark = pytest.mark.own


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, -2.5, null, true], "ü": "x"}', {"a": [1, -2.5, None, True], "ü": "x"}),
        (b'"\\ud83d\\ude00"', "😀"),  # both halves of a character
        (nested(MOST_NESTED), eval(nested(MOST_NESTED))),
        ("[" + ", ".join(["[]"] * 1000) + "]", [[]] * 1000),
    ],
)
def test_json_is_read(text, value):
    assert parse_json(text) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        (b'"\xff"', "can't decode byte 0xff"),
        (nested(MOST_NESTED + 2), "nested more than 100 levels deep"),
        (nested(100_000), "nested more than 100 levels deep"),
        ("[" * 100_000, "nested more than 100 levels deep"),
        ("9" * 5000, "^a number has too many digits; write it as text$"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' occurs twice"),
        ("[NaN]", "NaN is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ('["\\ud83d"]', "half of a character"),
        ('{"\\udfff": 1}', "half of a character"),
    ],
)
def test_what_is_not_json_is_refused(text, words):
    with pytest.raises(UnreadableError, match=words):
        parse_json(text)


def test_yaml_is_read_as_pyyaml_reads_it():
    text = """
    base: &it {r: 8, alpha: 16.5}
    other: {<<: *it, r: 4}
    twice: [*it, *it]
    day: 2026-01-02
    1: "one"
    """
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("") is None


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "not valid YAML at line 1: "),
        (b"a: \xff", r"not UTF-8 text \(invalid start byte\)"),
        (LAUGHS, "not valid YAML at line 5: more than 100000 values"),
        ("a: &a [*a]", r"line 1: the alias \*a stands inside of what it means"),
        ("a: *b", "undefined alias"),
        ("- " * 200 + "x", "nested more than 100 levels deep"),
        ("[" * 100_000, "nested more than 100 levels deep"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' occurs twice"),
        ("a: 2026-13-45", "a value cannot be read .*month must be in 1..12"),
        ("a: " + "9" * 5000, "a value cannot be read .a number has too many digits"),
        ("a: !!bool x", "a value cannot be read"),
        ('a: !!int ""', "a value cannot be read"),
        ('a: "\\Uffffffff"', "a value cannot be read"),
        ('a: "\\ud800"', "half of a character"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("2026-01-01: 1", "a key is a date; quote it"),
        ("[a, b]: 1", "a key must be text or a number"),
    ],
)
def test_what_is_not_plain_yaml_is_refused(text, words):
    with pytest.raises(UnreadableError, match=words):
        parse_yaml(text)


def test_a_file_is_read_up_to_its_limit(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("[1]")
    assert read_json(file) == [1]
    assert read_whole(file, 3) == b"[1]"
    with pytest.raises(PerdureError, match=r"a\.json: has more than 0 MiB, the limit"):
        read_whole(file, 2)


def test_a_pipe_and_a_device_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(PerdureError, match="is not a file"):
            read_whole(path, 10)


@pytest.mark.parametrize("read", [parsing.read_json, lambda file: list(read_records(file))])
def test_a_small_file_takes_little_memory_whatever_the_limit_is(read, tmp_path):
    file = tmp_path / "a.json"
    file.write_text('[{"prompt": "a", "completion": "b"}]')
    tracemalloc.start()
    try:
        read(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * parsing.MIB
