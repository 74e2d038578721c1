"""`Guard` as a callback of `learn`."""

from pathlib import Path

import pytest

from perdure import Guard
from perdure.api import learn
from perdure.config import load_config
from place import init, setting_for


pytestmark = pytest.mark.own


@pytest.mark.parametrize("adapter", [{}, None], ids=["adapter", "whole"])
def test_the_guard_measures_in_a_verb_and_changes_no_bit(tmp_path, monkeypatch, adapter):
    monkeypatch.chdir(tmp_path)
    setting = {k: v for k, v in setting_for("causal", tmp_path).items() if k != "tasks"}
    for name in ("with", "without"):
        init(name, load_config({**setting, "adapter": adapter}))
    lines: list[str] = []
    callback = Guard(limit=7, max_new_tokens=4, every=4, say=lines.append)
    learn("with", "colour", "colour-train.jsonl", "colour-test.jsonl", callbacks=[callback])
    learn("without", "colour", "colour-train.jsonl", "colour-test.jsonl")
    assert [result["step"] for result in callback.results] == [4, 5]
    assert lines
    name = "adapter_model.safetensors" if adapter is not None else "model.safetensors"
    files = (Path(folder, "stages", "0001-colour", name) for folder in ("with", "without"))
    assert len({file.read_bytes() for file in files}) == 1
