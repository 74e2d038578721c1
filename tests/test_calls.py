"""What the functions of the verbs do with the arguments of a call, and what they leave behind."""

import errno
import inspect
import random
import threading
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pytest
import torch
from peft import LoraConfig

import perdure
from command import refused
from perdure import PerdureError, api
from perdure.calls import checked, leaves_no_trace, plain
from place import learned, setting_for


pytestmark = pytest.mark.own


class Kind(StrEnum):
    LORA = "LORA"


class Place:
    def __fspath__(self) -> str:
        return "elsewhere"


@checked
def verb(
    folder: str | Path,
    stage: int | None = None,
    share: float = 0.5,
    tasks: Sequence[str] = (),
    stages: Sequence[int] = (),
    rows: str | Path | Sequence[dict] | dict | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    base: str | None = None,
    quick: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """A verb."""
    return {k: v for k, v in locals().items() if k != "settings"}


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("stage", np.int64(2), 2),
        ("share", 1, 1.0),
        ("share", np.float32(0.25), 0.25),
        ("tasks", (name for name in "ab"), ["a", "b"]),
        ("tasks", np.array(["a", "b"]), ["a", "b"]),
        ("stages", range(2), [0, 1]),
        ("rows", ({"text": "a"} for _ in range(2)), [{"text": "a"}] * 2),
        ("rows", "a.jsonl", "a.jsonl"),
        ("rows", {"path": Path("a.jsonl")}, {"path": "a.jsonl"}),
        ("base", Path("a/b"), "a/b"),
        ("base", PurePosixPath("a/b"), "a/b"),
        ("folder", Place(), Path("elsewhere")),
        ("quick", np.bool_(True), True),
        ("dtype", "float64", "float64"),  # the verb names the nearest choice
    ],
)
def test_what_is_meant_is_taken(name, given, taken):
    value = verb(**{"folder": "a", name: given})[name]
    assert (value, type(value)) == (taken, type(taken))


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("stage", 1.0, "a whole number or None, got 1.0"),
        ("stage", True, "a whole number or None, got True"),
        ("stage", "1", "a whole number or None, got '1'"),
        ("share", True, "a number, got True"),
        ("share", "0.5", "a number, got '0.5'"),
        ("tasks", "reviews", "a list, got 'reviews'"),
        ("tasks", None, "a list, got None"),
        ("tasks", [1], r"a list, and each item text; got \[1\]"),
        ("stages", [1.0], "a list, and each item a whole number"),
        ("stages", [True], "a list, and each item a whole number"),
        ("rows", 3, "a path or text or a mapping or None or a list, got 3"),
        ("dtype", torch.float16, "'float32' or 'bfloat16' or None, got torch.float16"),
        ("folder", None, "a path or text, got None"),
        ("folder", "a\0b", "a path has no null character"),
        ("quick", "no", "True or False, got 'no'"),
        ("base", ["x" * 9999], r"text or None, got \['x+\.\.\.x+'\]"),
    ],
)
def test_what_is_not_is_one_line_with_its_name(name, given, wanted):
    with pytest.raises(PerdureError, match=f"^verb: {name}.*{wanted}") as error:
        verb(**{"folder": "a", name: given})
    assert len(str(error.value)) < 200


def test_the_columns_of_a_table_are_not_its_rows():
    table = type("Table", (), {"columns": ["prompt"], "to_dict": dict, "__iter__": iter})()
    with pytest.raises(PerdureError, match="to_dict"):
        verb("a", rows=table)


def test_settings_are_as_yaml_has_them_and_copied():
    given = {"a": (np.float32(0.5), {"q", "k"}), "b": Kind.LORA, "c": Path("d"), "e": {"f": [1]}}
    taken = plain(given)
    assert taken == {"a": [0.5, ["k", "q"]], "b": "LORA", "c": "d", "e": {"f": [1]}}
    assert type(taken["b"]) is str
    config = perdure.load_config(settings := {"training": {"max_steps": np.int64(3)}})
    config.training["max_steps"] = 4
    assert settings == {"training": {"max_steps": 3}}
    with pytest.raises(PerdureError, match=r"training: {learning_rate: \.\.\.}"):
        perdure.load_config({"training.learning_rate": 1})
    lora = LoraConfig(target_modules=["q_proj"] * 99)
    for adapter in (lora, [1] * 999):
        with pytest.raises(PerdureError, match="adapter takes a mapping") as error:
            perdure.load_config({"adapter": adapter})
        assert len(str(error.value)) < 200
        assert "\n" not in str(error.value)
    for source in (None, [], 3):
        with pytest.raises(PerdureError, match="settings are a mapping or the path of a YAML"):
            perdure.load_config(source)  # type: ignore[arg-type]


def test_every_verb_checks_its_arguments_and_says_its_signature():
    for name in (*(n for n in perdure.__all__ if n.islower() and n != "load_config"), "rules"):
        function = getattr(api, name)
        assert function.__wrapped__, name
        assert next(iter(inspect.signature(function).parameters)) in ("name", *FIRST), name


FIRST = ("folder", "folders", "config", "model", "models", "grid", "checkpoint")


def test_the_random_generators_and_threads_are_the_callers():
    @leaves_no_trace
    def seeds() -> None:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        torch.set_num_threads(threads + 1)

    threads = torch.get_num_threads()
    before = [(random.seed(3), random.random()), (np.random.seed(3), np.random.rand())]
    drawn = (torch.manual_seed(3), torch.rand(1).item())
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    seeds()
    assert [random.random(), np.random.rand()] == [value for _, value in before]
    assert torch.rand(1).item() == drawn[1]
    assert torch.get_num_threads() == threads


def test_verbs_of_several_threads_wait_for_each_other():
    inside, most = [], []

    @leaves_no_trace
    def work() -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_a_file_that_cannot_be_used_is_one_line_in_python_too(tmp_path):
    @checked
    def written(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "denied", str(folder / "lock"))

    with pytest.raises(PerdureError, match=r"lock: permission is denied; fix that"):
        written(tmp_path)

    @checked
    def failed(folder: Path) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        failed(tmp_path)


def test_what_is_there_is_listed():
    assert {"init", "learn", "Lineage"} <= set(dir(perdure))


def test_a_lineage_stands_for_its_folder_and_no_file_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lineage = learned(setting_for("causal", tmp_path), "lineage")
    assert api.show(lineage, np.int64(1))["stage"] == 1  # type: ignore[arg-type]
    with pytest.raises(PerdureError, match="no stage 9; valid: 0, 1, 2"):
        lineage.line(9)
    for words in (("log", "colour-test.jsonl"), ("learn", "colour-test.jsonl", "a", "b.jsonl")):
        refused(tmp_path, *words, names=("colour-test.jsonl: is a file, and a folder is needed",))
    ledger = Path("lineage/ledger.jsonl").read_bytes()
    for place, words in (
        ("lineage/ledger.jsonl", "is in the lineage"),
        ("./lineage/stages/a", "there is no folder|is in the lineage"),
        ("animal-train.jsonl", "has the train rows of animal"),
    ):
        with pytest.raises(PerdureError, match=words):
            api.evaluate("lineage", predictions=place)
    assert Path("lineage/ledger.jsonl").read_bytes() == ledger


def test_lists_without_rows_and_rows_where_files_are_read_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "a", "completion": "b"}]
    learned(setting_for("causal", tmp_path), "lineage")
    for splits in ({"train": []}, {"train": rows, "dev": []}, {"train": rows, "test": iter(())}):
        with pytest.raises(PerdureError, match="the list holds no rows"):
            api.learn("lineage", "more", **splits)  # type: ignore[arg-type]
    with pytest.raises(PerdureError, match="there are no rows"):
        api.check("lineage", rows=[])
    with pytest.raises(PerdureError, match="no folder is given"):
        api.report([])
    tasks = [{"name": "a", "train": rows}]
    with pytest.raises(PerdureError, match=r"given in Python are for `perdure\.learn`"):
        api.run({"base": "default", "tasks": tasks, "lineage": "other"})
