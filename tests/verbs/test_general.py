"""Rows of general use as a second memory."""

import json
from pathlib import Path

import pytest

from perdure import Lineage, PerdureError, load_config
from perdure.api import run
from perdure.models.layout import GENERAL
from perdure.train.memory import Memory
from place import learned, setting_for
from tiny import shown_on_causal, tiny_rows


pytestmark = pytest.mark.own


@pytest.fixture(params=["causal", "seq2seq"])
def setting(request, tmp_path):
    plain = setting_for(request.param, tmp_path)
    lines = [json.dumps(row) + "\n" for row in tiny_rows("count", 30, seed=5)]
    (tmp_path / "general.jsonl").write_text("".join(lines))
    return {**plain, "method": "replay", "general": {"file": str(tmp_path / "general.jsonl")}}


@pytest.fixture
def memories(monkeypatch):
    """What every stage's memory was made of."""
    memory_sizes, init = [], Memory.__init__
    monkeypatch.setattr(
        Memory,
        "__init__",
        lambda self, tasks, seed: (
            memory_sizes.append({k: len(v) for k, v in tasks.items()}) or init(self, tasks, seed)
        ),
    )
    return memory_sizes


def test_general_rows_stand_in_the_memory_beside_the_old_tasks(setting, tmp_path, memories):
    lineage = learned(setting, tmp_path / "run")
    assert memories == [{GENERAL: 4}, {GENERAL: 4, "colour": 4}]  # 0.1 of 40 rows, both
    for entry in lineage.stages:
        assert entry["general"]["rows"] == 4
        assert entry["general"]["source"]["path"] == "../general.jsonl"
    one, two = (entry["general"]["sha256"] for entry in lineage.stages)
    assert one != two  # every stage draws its own


@shown_on_causal("setting", ("causal", "seq2seq"))
def test_they_are_rehearsed_from_the_first_task_on(setting, tmp_path):
    with_general = learned(setting, tmp_path / "general")
    without = learned({**setting, "general": {}}, tmp_path / "none")
    one, other = (
        (line.folder(line.stages[0]) / "adapter_model.safetensors").read_bytes()
        for line in (with_general, without)
    )
    assert one != other


@shown_on_causal("setting", ("causal", "seq2seq"))
def test_ratio_is_of_the_new_rows_and_more_than_all_is_all(setting, tmp_path, memories):
    learned({**setting, "general": {**setting["general"], "ratio": 3}}, tmp_path / "run")
    assert memories[0] == {GENERAL: 30}


@shown_on_causal("setting", ("causal", "seq2seq"))
def test_the_file_is_found_from_anywhere_and_its_move_is_told(setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setting["general"] = {"file": "general.jsonl"}
    learned(setting, "deep/run")
    assert "file: ../../general.jsonl" in Path("deep/run/lineage.yaml").read_text()
    learned(setting, "deep/run")  # the same settings from the same place: nothing to do
    monkeypatch.chdir(tmp_path / "deep")
    assert Path(Lineage("run").config.general.file).resolve() == tmp_path / "general.jsonl"
    (tmp_path / "general.jsonl").rename(tmp_path / "moved.jsonl")
    with pytest.raises(PerdureError, match=r"no file .*general\.jsonl"):
        run(load_config({**setting, "general": {"file": "gone/general.jsonl"}, "lineage": "new"}))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"method": "sequential"}, "no method of 'sequential' rehearses rows; use replay"),
        ({"general": {"file": "FILE", "ratio": 0}}, "ratio must be above 0, got 0"),
        ({"general": {"file": "FILE", "rato": 1}}, "unknown key 'rato'; did you mean 'ratio'"),
        ({"general": {"file": "nowhere.jsonl"}}, "no file nowhere.jsonl"),
        ({"max_completion_length": 1}, "the completion has 2 tokens"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(setting, tmp_path, change, line):
    changed = json.loads(
        json.dumps({**setting, **change}).replace("FILE", setting["general"]["file"])
    )
    with pytest.raises(PerdureError, match=line):
        learned(changed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_encoder_has_no_place_for_them(tmp_path):
    setting = setting_for("encoder", tmp_path)
    (tmp_path / "general.jsonl").write_text(json.dumps(tiny_rows("count", 1)[0]))
    rehearsal = {"method": "replay", "general": {"file": str(tmp_path / "general.jsonl")}}
    with pytest.raises(PerdureError, match="an encoder learns only the labels of its tasks"):
        learned({**setting, **rehearsal}, tmp_path / "run")
