"""What must hold of the rules that need more than weights, in the files that they write."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from command import tree
from merging.models import Killed, measured_for, save_expert, save_statistics, weights_of
from perdure.api import merge, statistics
from perdure.merging import output
from tiny import tiny_model, tiny_tokenizer


pytestmark = pytest.mark.own
WEIGHTS = "model.safetensors"
ROWS = [{"prompt": "red is", "completion": " one two"}, {"prompt": "the cat", "completion": " up"}]
NEEDY = pytest.mark.parametrize("rule", ["fisher", "regmean", "frank_wolfe"])


@pytest.fixture
def ground(tmp_path, monkeypatch):
    """A base and two checkpoints in bf16."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("base", 0), ("x", 1), ("y", 2)):
        save_expert(name, seed, step=0.0 if name == "base" else 0.01, dtype=torch.bfloat16)
    return tmp_path


@NEEDY
def test_the_result_in_bf16_is_the_rounded_one_of_fp64(rule, ground):
    measured = measured_for(rule, "x", "y")
    merge(["x", "y"], rule, base="base", into="out", **measured)
    exact = {"keywords": {"exact": True}}
    merge(["x", "y"], rule, base="base", into="wide", dtype="float32", **measured, **exact)
    merged, oracle = weights_of("out"), weights_of("wide")
    for name, weights in merged.items():
        assert weights.dtype == torch.bfloat16
        ulp = oracle[name].abs() * 2.0**-8 + 2.0**-20
        assert ((weights.float() - oracle[name]).abs() <= ulp).all(), name


@NEEDY
def test_a_pair_of_equal_checkpoints_gives_the_checkpoint(rule, ground):
    """Whatever was measured of them: with all weight on one of two, or on both."""
    more = measured_for(rule, "x", "x")
    merge(["x", "x"], rule, base="base", into="out", **more)
    merged, expert = weights_of("out"), weights_of("x")
    assert all(torch.equal(merged[name], expert[name]) for name in expert)


@pytest.mark.parametrize("rule", ["fisher", "regmean"])
def test_what_was_begun_with_other_statistics_is_begun_again(rule, ground):
    """A result that another measurement has begun is stale, as is one of another treatment."""
    folders = measured_for(rule, "x", "y")["statistics"]
    finish, count = output.Output.finish, 0

    def stop(self, name, **facts):
        nonlocal count
        finish(self, name, **facts)
        count += 1
        if count == 9:
            raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(output.Output, "finish", stop)
        with pytest.raises(Killed):
            merge(["x", "y"], rule, base="base", into="out", statistics=folders)
    others = [save_statistics(f"other-{n}", n, rule, seed=7 + i) for i, n in enumerate("xy")]
    merge(["x", "y"], rule, base="base", into="out", statistics=others, after=["lines"])
    merge(["x", "y"], rule, base="base", into="once", statistics=others, after=["lines"])
    assert tree(Path("out"))[WEIGHTS] == tree(Path("once"))[WEIGHTS]


@pytest.mark.parametrize("rule", ["fisher", "regmean"])
def test_tied_weights_are_measured_and_merged_once(rule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = LlamaConfig(**{**tiny_model("causal").config.to_dict(), "tie_word_embeddings": True})
    for seed, name in enumerate(("tied", "p", "q")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            LlamaForCausalLM(config).save_pretrained(name)
        tiny_tokenizer("causal").save_pretrained(name)
    for name in ("p", "q"):
        statistics(name, ROWS, f"of-{name}", rule=rule)
    measured = load_file("of-p/statistics.safetensors")
    assert "lm_head.weight" not in measured
    merge(["p", "q"], rule, base="tied", into="out", statistics=["of-p", "of-q"])
    table = "model.embed_tokens.weight"
    merged, experts = weights_of("out"), [weights_of(name)[table].double() for name in ("p", "q")]
    assert "lm_head.weight" not in merged
    masses = [torch.ones_like(expert) for expert in experts]
    if rule == "fisher":
        abouts = [json.loads(Path(f"of-{n}/statistics.json").read_text()) for n in ("p", "q")]
        stored = [load_file(f"of-{n}/statistics.safetensors")[table] for n in ("p", "q")]
        masses = [
            s.double() / about["mean"] + 1e-6 for s, about in zip(stored, abouts, strict=True)
        ]
    wanted = sum(m * e for m, e in zip(masses, experts, strict=True)) / sum(masses)
    torch.testing.assert_close(merged[table].double(), wanted, atol=1e-6, rtol=1e-5)
