"""Treatments of the merged weights: their formulas, what they leave alone, and both forms."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from command import perdure, refused, tree
from marks import at_least
from merging.models import (
    merged_by_peft,
    save_adapter,
    save_expert,
    stopped_again_and_again,
    weights_of,
)
from perdure.api import init, merge, verify
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.merging.after import find, keywords, make, names
from perdure.merging.after.intruder import intruders_of
from perdure.merging.layers import Layers
from perdure.merging.output import Output
from perdure.merging.rule import Place
from perdure.models.limits import skeleton
from tiny import save_tiny
from zoo import ARCHITECTURES, config_of


pytestmark = pytest.mark.own
WEIGHTS = "model.safetensors"
EVERY = pytest.mark.parametrize("name", names())


@pytest.fixture(scope="module")
def made_experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("treated")
    save_tiny("causal", folder / "base")
    for seed, name in enumerate("xy", start=1):
        save_expert(folder / name, seed)
    return folder


@pytest.fixture
def here(made_experts, tmp_path, monkeypatch):
    shutil.copytree(made_experts, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


# --- LiNeS ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", at_least(["llama", "gpt2", "t5", "bert", "albert"], ARCHITECTURES))
def test_every_architecture_has_layers_with_a_first_and_a_last(name):
    """The numbers in names are those of the modules that the architecture lists as its layers."""
    kind, config = ARCHITECTURES[name][0], config_of(name)
    config.architectures = config.architectures or []  # as a config.json has it
    model = skeleton(config, kind)
    assert model is not None
    tensors = list(model.state_dict())
    layers = Layers(tensors)
    lists = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)}
    outer = {n: len(m) for n, m in lists.items() if not any(n.startswith(f"{o}.") for o in lists)}
    assert layers.counts == outer
    depths = {layers.depth(tensor) for tensor in tensors}
    deep = any(count > 1 for count in outer.values())
    assert depths >= ({None, 0.0, 1.0} if deep else {None})


def test_depths_are_shares_of_each_stack():
    stacks = [f"encoder.block.{i}.layer.{j}.w" for i in range(3) for j in range(2)]
    stacks += [f"decoder.block.{i}.w" for i in range(5)]
    layers = Layers([*stacks, "shared.weight", "pooler.0.w"])
    assert [layers.depth(f"encoder.block.{i}.layer.1.w") for i in range(3)] == [0, 0.5, 1]
    assert layers.depth("decoder.block.1.w") == 0.25
    assert layers.depth("shared.weight") is None
    assert layers.depth("pooler.0.w") is None  # the only layer of its stack


def test_lines_scales_by_depth_and_everything_else_by_alpha(here):
    after = {"lines": {"alpha": 0.25, "beta": 0.5}}
    merge(["x", "y"], base="base", into="plain")
    result = merge(["x", "y"], base="base", into="out", after=after)
    base, plain, treated = (weights_of(name) for name in ("base", "plain", "out"))
    for name, weights in treated.items():
        factor = 0.75 if ".layers.1." in name else 0.25
        wanted = base[name] + factor * (plain[name] - base[name])
        torch.testing.assert_close(weights, wanted, atol=1e-7, rtol=1e-6)
    assert result["after"] == [{"lines": {"alpha": 0.25, "beta": 0.5}}]
    assert 0.25 * result["norm"] < result["treated_norm"] < 0.75 * result["norm"]
    assert "`lines` (alpha=0.25, beta=0.5)" in Path("out/README.md").read_text()


def test_lines_keeps_an_adapter_an_adapter(here):
    save_adapter("one", 1)
    told = perdure(
        *("merge", "one", "--into", "out", "--after", "lines", "after.lines.alpha=0"),
        *("after.lines.beta=0.5", "--json"),
    )
    assert told.status == 0, told.err
    assert told.json["kind"] == "adapter"
    base, one, out = (
        weights_of("base"),
        merged_by_peft("base", "one"),
        merged_by_peft("base", "out"),
    )
    for name, weights in out.items():
        factor = 0.5 if ".layers.1." in name else 0.0
        wanted = base[name] + factor * (one[name] - base[name])
        torch.testing.assert_close(weights, wanted, atol=1e-6, rtol=1e-5)
    assert told.json["treated_norm"] < 0.5 * told.json["norm"]


# --- intruder dimensions -------------------------------------------------------------------------


def test_a_direction_that_the_base_has_not_is_scaled_and_others_stay():
    """Of diag(4, 3) in three dimensions, the third direction is an intruder."""
    base = torch.zeros(3, 3)
    base[0, 0], base[1, 1] = 4.0, 3.0
    tau = torch.zeros(3, 3)
    tau[0, 0], tau[2, 2] = 1.0, 2.0
    (treatment,) = make({"intruder": {"remaining": 0.25}})
    place = Place("w", (3, 3), "matrix")
    treated = treatment.treat(tau, base, place)
    wanted = tau.clone()
    wanted[2, 2] = 0.25 * 2.0
    torch.testing.assert_close(treated, wanted)
    (two,) = make({"intruder": {"remaining": 0.25, "top_k": 2}})
    torch.testing.assert_close(two.treat(tau, base, place), tau)  # it is the third largest
    for role in ("vector", "embedding"):
        assert treatment.treat(tau, base, place._replace(role=role)) is tau
    experts = torch.stack([tau, torch.zeros(3, 3)])
    bases = torch.stack([base, base])
    packed = treatment.treat(experts, bases, Place("w", (2, 3, 3), "matrix"))
    torch.testing.assert_close(packed, torch.stack([wanted, torch.zeros(3, 3)]))


def test_the_directions_are_those_of_the_outputs():
    """A new output direction is an intruder, and a new input direction of an old one is not."""
    base = torch.zeros(3, 3)
    base[0, 0] = 1.0
    place = Place("w", (3, 3), "matrix")
    (treatment,) = make({"intruder": {"remaining": 0.0}})
    output, inputs = torch.zeros(3, 3), torch.zeros(3, 3)
    output[2, 1], inputs[0, 2] = 0.5, 0.5
    assert not treatment.treat(output, base, place).any()
    torch.testing.assert_close(treatment.treat(inputs, base, place), inputs)
    transposed = place._replace(transposed=True)
    assert not treatment.treat(output.T, base.T, transposed).any()
    torch.testing.assert_close(treatment.treat(inputs.T, base.T, transposed), inputs.T)


def test_the_threshold_is_of_the_largest_cosine_and_a_base_of_zeros_has_no_direction():
    base = torch.diag(torch.tensor([2.0, 1.0, 0.0]))
    half = torch.tensor([0.6, 0.0, 0.8])[:, None]
    assert intruders_of(half, base, 0.59).tolist() == []
    assert intruders_of(half, base, 0.61).tolist() == [0]
    assert intruders_of(half, torch.zeros(3, 3), 0.01).tolist() == [0]


def test_intruders_of_an_adapter_are_reduced_as_peft_does(here):
    """With an adapter of full rank, PEFT's cut back to its rank changes nothing."""
    from peft import PeftModel
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    save_adapter("one", 1, r=32, target_modules=["q_proj", "down_proj"])
    lines: list[str] = []
    merge(
        *(["one"], "task_arithmetic"),
        into="out",
        after={"intruder": {"threshold": 0.7}},
        say=lines.append,
    )
    assert any(line.startswith("note: intruder does more than to add") for line in lines)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "one")
    reduce_intruder_dimension(model, threshold_epsilon=0.7, logging_sink=None)
    wanted, merged = model.merge_and_unload().state_dict(), weights_of("out")
    plain, changed = merged_by_peft("base", "one"), 0
    for name, weights in merged.items():
        torch.testing.assert_close(weights, wanted[name], atol=1e-5, rtol=1e-4)
        changed += not torch.allclose(weights, plain[name], atol=1e-3)
    assert changed >= 2


# --- what all treatments share -------------------------------------------------------------------


@EVERY
def test_a_treatment_says_what_it_is(name):
    treatment = find(name)
    assert make([name])[0].name == name
    for key in keywords(name):
        assert f"        {key}: " in (treatment.__doc__ or ""), key
    assert (
        treatment.neutral.items() <= {k: treatment.neutral.get(k) for k in keywords(name)}.items()
    )


@EVERY
@pytest.mark.parametrize("rule", ["task_arithmetic", "opcm"])
def test_with_neutral_keywords_not_a_bit_changes(name, rule, here):
    merge(["x", "y"], rule, base="base", into="plain")
    merge(["x", "y"], rule, base="base", into="out", after={name: find(name).neutral})
    assert tree(Path("out"))[WEIGHTS] == tree(Path("plain"))[WEIGHTS]


@EVERY
def test_the_base_and_other_shards_and_a_stopped_run_give_the_same(name, here):
    merge(["base"], base="base", into="same", after=[name])
    assert tree(Path("same"))[WEIGHTS] == tree(Path("base"))[WEIGHTS]
    merge(["x", "y"], "opcm", base="base", into="once", after=[name])
    AutoModelForCausalLM.from_pretrained("y").save_pretrained("sharded", max_shard_size="20KB")
    merge(["x", "sharded"], "opcm", base="base", into="again", after=[name])
    assert tree(Path("again"))[WEIGHTS] == tree(Path("once"))[WEIGHTS]
    stopped_again_and_again(
        lambda: merge(["x", "y"], "opcm", base="base", into="stopped", after=[name]),
        Path("stopped"),
    )
    assert tree(Path("stopped"))[WEIGHTS] == tree(Path("once"))[WEIGHTS]
    merge(["x", "y"], "opcm", base="base", into="plain")
    assert tree(Path("plain"))[WEIGHTS] != tree(Path("once"))[WEIGHTS]


def test_treatments_are_applied_in_their_order(here):
    after = {"lines": {"alpha": 0.0, "beta": 0.0}, "intruder": {}}
    merge(["x"], base="base", into="first", after=after)  # nothing is left to treat
    assert tree(Path("first"))[WEIGHTS] == tree(Path("base"))[WEIGHTS]
    merge(["x"], base="base", into="one", after=["lines", "intruder"])
    merge(["x"], base="base", into="other", after=["intruder", "lines"])
    assert tree(Path("one"))[WEIGHTS] != tree(Path("other"))[WEIGHTS]


def test_a_stopped_merge_is_not_gone_on_with_in_another_order_of_treatments(here, monkeypatch):
    merge(["x"], base="base", into="wanted", after=["intruder", "lines"])
    finish, finished = Output.finish, []

    def stopped(output, name, **facts):
        finish(output, name, **facts)
        finished.append(name)
        if len(finished) == 11:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Output, "finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            merge(["x"], base="base", into="mixed", after=["lines", "intruder"])
    merge(["x"], base="base", into="mixed", after=["intruder", "lines"])
    assert tree(Path("mixed"))[WEIGHTS] == tree(Path("wanted"))[WEIGHTS]
    init("lineage", base="base", method="sequential", adapter=None)
    for number, after in enumerate((["lines", "intruder"], ["intruder", "lines"]), start=1):
        assert merge(["lineage", "x"], after=after)["stage"] == number


def test_what_arrives_in_a_lineage_is_treated_and_its_state_is_not(here):
    init("lineage", base="base", method="sequential", adapter=None)
    shutil.copytree("lineage", "plain")
    for name in "xy":
        told = perdure("merge", "lineage", name, "--after", "lines", "after.lines.alpha=0.25")
        assert told.status == 0, told.err
        merge(["plain", name])
    treated, plain = (Lineage(name).stages[-1] for name in ("lineage", "plain"))
    assert treated["after"] == [{"lines": {"alpha": 0.25, "beta": 0.5}}]
    assert treated["files"]["merge.safetensors"] == plain["files"]["merge.safetensors"]
    merge(["x", "y"], base="base", into="once", after={"lines": {"alpha": 0.25}}, dtype="float32")
    stage = Lineage("lineage").folder(treated)
    assert tree(stage)[WEIGHTS] == tree(Path("once"))[WEIGHTS]
    assert (
        "already merged"
        in perdure("merge", "lineage", "y", "--after", "lines", "after.lines.alpha=0.25").err
    )
    assert "lines (alpha 0.25, beta 0.5)" in perdure("show", "lineage").out
    assert verify("lineage") == []
    again = perdure("merge", "lineage", "y", "--json")  # without the treatment it is another stage
    assert again.json["stage"] == 3
    assert "after" not in again.json


def test_adapters_that_arrive_in_a_lineage_are_scaled(here):
    save_adapter("one", 1)
    init("lineage", base="base", method="sequential", adapter={"r": 3, "lora_alpha": 6})
    words = ("intruder: its result is no LoRA adapter, and the stages of lineage are",)
    refused(here, "merge", "lineage", "one", "--after", "intruder", names=words)
    entry = merge(["lineage", "one"], after={"lines": {"alpha": 0.0, "beta": 1.0}})
    base, one = weights_of("base"), merged_by_peft("base", "one")
    stage = Lineage("lineage").folder(entry)
    merged = merged_by_peft("base", stage)
    for name, weights in merged.items():
        wanted = one[name] if ".layers.1." in name else base[name]
        torch.testing.assert_close(weights, wanted, atol=1e-5, rtol=1e-4)
    state = load_file(stage / "merge.safetensors")
    assert any(tensor.any() for name, tensor in state.items() if ".layers.0." in name)


def test_what_a_treatment_cannot_take_is_refused(here):
    def bad(*words: str, after: tuple[str, ...]) -> None:
        arguments = ("merge", "x", "y", "--base", "base", "--into", "out", *after)
        refused(here, *arguments, names=words)

    bad("unknown treatment 'line'; did you mean 'lines'?", after=("--after", "line"))
    bad("did you mean 'intruder'?", after=("--after", "intruders"))
    bad("give --after lines as well", after=("after.lines.beta=1",))
    bad("is written after.NAME.KEY=VALUE", after=("--after", "lines", "after.beta=1"))
    twice = ("--after", "lines", "--after", "lines")
    bad("lines is given twice; a treatment is applied once", after=twice)
    limit = ("--after", "intruder", "--max-memory", "1kB")
    bad("intruder needs whole tensors, so allow more, or leave --after intruder out", after=limit)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("lines", {"lambda": 1}, "lines has no keyword 'lambda'"),
        ("lines", {"alpha": -1}, "lines: alpha and alpha + beta must be >= 0, got -1 and -0.5"),
        ("lines", {"beta": -0.75}, "got 0.5 and -0.25"),
        ("lines", {"alpha": "much"}, "lines: alpha takes a number, got 'much'"),
        ("intruder", {"lambda": 1}, "did you mean 'remaining'?"),
        ("intruder", {"top_k": 0}, "intruder: top_k must be >= 1, got 0"),
        ("intruder", {"threshold": 1.5}, "threshold must be >= 0 and <= 1, got 1.5"),
        ("intruder", {"remaining": -1}, "remaining must be >= 0 and <= 1, got -1"),
    ],
)
def test_values_that_a_treatment_cannot_take_are_refused(name, values, words):
    with pytest.raises(PerdureError) as error:
        make({name: values})
    assert words in str(error.value)


def test_lines_needs_numbered_layers():
    (treatment,) = make(["lines"])
    with pytest.raises(PerdureError, match="no tensor of the base is in a numbered layer"):
        treatment.check([Place("embed.weight", (3, 3), "embedding")])
