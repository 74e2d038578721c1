"""Test and dev rows that are given in Python are kept with the stage, and read from there."""

import json
import shutil
from pathlib import Path

import pytest

from perdure.api import adopt, configure, evaluate, learn, show, verify
from perdure.config import load_config
from perdure.data.rows import as_row, read_rows, write_rows
from perdure.errors import RefusedError
from perdure.lineage.lineage import Lineage
from perdure.models.layout import SCORES
from place import init, setting_for
from tiny import tiny_rows


pytestmark = pytest.mark.own


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    setting = {k: v for k, v in setting_for("causal", tmp_path).items() if k != "tasks"}
    init("lineage", load_config(setting))
    init("files", load_config(setting))
    return tmp_path


def rows(name: str, split: str) -> list[dict]:
    return list(read_rows(f"{name}-{split}.jsonl"))


def test_old_tasks_are_scored_on_them_after_later_stages(here):
    lines: list[str] = []
    dev = list(tiny_rows("colour", 6, seed=5))
    learn(
        "lineage", "colour", rows("colour", "train"), rows("colour", "test"), dev, say=lines.append
    )
    learn("lineage", "animal", rows("animal", "train"), rows("animal", "test"), say=lines.append)
    write_rows(Path("dev.jsonl"), dev)
    learn("files", "colour", "colour-train.jsonl", "colour-test.jsonl", "dev.jsonl")
    learn("files", "animal", "animal-train.jsonl", "animal-test.jsonl")
    assert not [line for line in lines if "not scored" in line]
    for stage in ("0001-colour", "0002-animal"):
        ours, theirs = (Path(name, "stages", stage, SCORES) for name in ("lineage", "files"))
        assert ours.read_bytes() == theirs.read_bytes()
    assert None not in Lineage("lineage").matrix().rows[-1]
    assert show("lineage")["verdict"]["unmeasured"] == []
    stage = Path("lineage/stages/0001-colour")
    assert read_rows(stage / "test.jsonl") == rows("colour", "test")
    assert read_rows(stage / "dev.jsonl") == dev
    assert not (Path("files/stages/0001-colour") / "test.jsonl").exists()
    shutil.move("lineage", "moved")
    assert evaluate("moved", stage=1)["colour"]["score"] == Lineage("moved").matrix().rows[1][0]
    assert verify("moved") == []
    (Path("moved/stages/0001-colour") / "test.jsonl").write_text("")
    assert "test.jsonl" in verify("moved")[0]


def test_rows_that_are_held_out_of_rows_in_python_are_kept_too(here):
    learn("lineage", "colour", rows("colour", "train"), hold_out=0.25)
    learn("lineage", "animal", rows("animal", "train"), hold_out=0.25)
    assert len(read_rows("lineage/stages/0001-colour/test.jsonl")) == 10
    assert None not in Lineage("lineage").matrix().rows[-1]


def test_those_of_an_adopted_stage_are_kept_and_a_refused_stage_is_no_trouble(here):
    learn("lineage", "colour", "colour-train.jsonl", rows("colour", "test"))
    shutil.copytree("lineage/stages/0001-colour", "checkpoint")
    adopt("lineage", "checkpoint", "again", test=rows("animal", "test"))
    assert Path("lineage/stages/0002-again/test.jsonl").exists()
    configure("lineage", **{"gate.kl": 0.0})
    with pytest.raises(RefusedError):
        learn("lineage", "animal", "animal-train.jsonl", rows("animal", "test"))
    configure("lineage", gate={"kl": None})
    learn("lineage", "animal", "animal-train.jsonl", rows("animal", "test"))
    assert None not in Lineage("lineage").matrix().rows[-1]
    assert verify("lineage") == []


def test_rows_of_every_form_are_read_as_they_were_written(tmp_path):
    turns = [
        {"role": "user", "content": "A\u2028"},
        {"role": "assistant", "content": "b", "weight": 1},
    ]
    records = [
        {"prompt": "a", "completion": " b", "references": ["c", "d"]},
        {"prompt": [turns[0]], "completion": [turns[1]], "tools": [{"name": "f"}]},
        {"messages": [*turns, *turns], "chat_template_kwargs": {"think": False}},
        {"text": "one\ntwo"},
        {"instruction": "do", "input": "it", "output": "done"},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ]
    given = [as_row(record, "a row") for record in records]
    write_rows(tmp_path / "rows.jsonl", given)
    assert read_rows(tmp_path / "rows.jsonl") == given
    assert json.loads((tmp_path / "rows.jsonl").read_text().partition("\n")[0])["prompt"] == "a"
