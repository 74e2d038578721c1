"""Recipes of merging: an instruct model after continued pretraining."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from command import perdure, refused
from merging.models import save_expert, weights_of
from perdure.api import merge
from perdure.merging.model import Model, open_checkpoint
from perdure.merging.presets import independence, lines_about
from tiny import save_tiny, tiny_tokenizer


pytestmark = pytest.mark.own


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A base, what it became by more pretraining, and its instruct model with a template."""
    monkeypatch.chdir(tmp_path)
    save_tiny("causal", tmp_path / "base")
    save_expert("trained", 1, dtype=torch.bfloat16)
    save_expert("instruct", 2)
    tokenizer = tiny_tokenizer("causal")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained("instruct")
    GenerationConfig(do_sample=True, temperature=0.25).save_pretrained("instruct")
    return tmp_path


def test_the_instruct_model_gets_what_was_learned_and_keeps_its_template(shelf):
    told = perdure(
        *("merge", "trained", "instruct", "--base", "base", "--preset", "reinstruct"),
        *("--into", "out", "--json"),
    )
    assert told.status == 0, told.err
    base, trained, instruct = (weights_of(name) for name in ("base", "trained", "instruct"))
    for name, weights in weights_of("out").items():
        assert weights.dtype == torch.float32
        wanted = instruct[name] + (trained[name].float() - base[name])
        torch.testing.assert_close(weights, wanted, atol=1e-6, rtol=1e-5)
    assert AutoTokenizer.from_pretrained("out").chat_template == "{{ messages }}"
    assert GenerationConfig.from_pretrained("out").temperature == 0.25
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "float32"
    assert "another chat template" not in told.err
    assert "the two changes have a cosine of " in told.err
    assert "warning" not in told.err
    assert abs(told.json["independence"]["cosine"]) < 0.05
    assert abs(told.json["independence"]["opposite"] - 0.5) < 0.05
    assert told.json["rule"] == {"task_arithmetic": {"scale": 1.0, "exact": False}}
    assert told.json["preset"] == "reinstruct"
    card = Path("out/README.md").read_text()
    assert "The two changes have a cosine of " in card
    assert "Config, tokenizer and chat template are those of `instruct`." in card


def test_what_two_changes_share_is_measured_and_told(shelf):
    base = Model("base")
    pair = [open_checkpoint(name) for name in ("trained", "trained")]
    measured = independence(base, pair)
    assert measured == {"cosine": 1.0, "opposite": 0.0}
    assert lines_about(measured)[1].startswith("warning: the two changes are not independent")
    assert len(lines_about({"cosine": 0.1, "opposite": 0.5})) == 1
    one, other, start = (weights_of(name) for name in ("trained", "instruct", "base"))
    one = torch.cat([(one[name].float() - start[name]).flatten() for name in start]).double()
    other = torch.cat([(other[name] - start[name]).flatten() for name in start]).double()
    measured = independence(base, [open_checkpoint(name) for name in ("trained", "instruct")])
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=0).item()
    assert measured["cosine"] == round(cosine, 4)
    changed = (one != 0) & (other != 0)
    share = ((one * other < 0).sum() / changed.sum()).item()
    assert measured["opposite"] == pytest.approx(share, abs=1e-4)
    shutil.copytree("base", "copy")
    assert independence(base, [open_checkpoint("copy"), pair[0]]) == {
        "cosine": 0.0,
        "opposite": 0.0,
    }
    lines: list[str] = []
    merge(["trained", "trained"], base="base", preset="reinstruct", into="out", say=lines.append)
    assert sum(line.startswith("warning: the two changes are not") for line in lines) == 1


def test_what_the_preset_decides_cannot_be_given(shelf):
    def bad(*words: str, given: tuple[object, ...]) -> None:
        arguments = ("merge", *given, "--base", "base", "--into", "out")
        refused(shelf, *arguments, names=words)

    both = ("trained", "instruct", "--preset", "reinstruct")
    bad(
        "preset 'instruct' is not a choice; did you mean 'reinstruct'?",
        given=(*("trained", "instruct", "--preset", "instruct"),),
    )
    words = "merges 2 checkpoints, in this order: the base after continued pretraining and"
    bad(words, given=("trained", "--preset", "reinstruct"))
    bad("reinstruct: decides rule itself; leave it out", given=(*both, "--rule", "ties"))
    bad("reinstruct: decides weights itself", given=(*both, "--weight", "1,2"))
    bad("reinstruct: decides rule.scale itself", given=(*both, "rule.scale=0.5"))
    bad("rank: is that of a merged adapter", given=(*both, "--rank", 3))
    assert perdure("init", "lineage", "--base", "base").status == 0
    words = ("reinstruct: makes a new model; give its folder with into",)
    arguments = ("merge", "lineage", "trained", "--preset", "reinstruct")
    refused(shelf, *arguments, names=words)
