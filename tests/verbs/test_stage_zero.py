"""Stage 0 is the base, also where a fresh adapter adds something before it has learned."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from perdure import answer, evaluate, export, init, learn
from tiny import save_tiny, tiny_rows


pytestmark = pytest.mark.own


@pytest.mark.parametrize("adapter", [{"init_lora_weights": False, "r": 16}, {}])
def test_what_is_asked_of_stage_0_is_asked_of_the_base(adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = str(save_tiny("causal", tmp_path / "base"))
    settings = {"training.max_steps": 1, "scoring.forward": True, "max_completion_length": 4}
    init("lineage", base=base, adapter=adapter, **settings)
    init("plain", base=base, **settings)
    rows = tiny_rows("colour", 6)
    prompts = [row["prompt"] for row in rows]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    Path("rows.jsonl").write_text(text, encoding="utf-8")
    learn("lineage", "colour", train="rows.jsonl", test="rows.jsonl")
    expected = answer("plain", prompts)
    assert answer("lineage", prompts, stage=0) == expected
    right = [a == row["completion"].strip() for a, row in zip(expected, rows, strict=True)]
    assert evaluate("lineage", 0)["colour"]["score"] == sum(right) / len(right)
    export("lineage", "merged", stage=0)
    one = AutoModelForCausalLM.from_pretrained("merged").state_dict()
    two = AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert all((one[name] == two[name]).all() for name in two)
    assert "peft" not in json.dumps(json.loads(Path("merged/config.json").read_text()))
