"""`merge` into a lineage: an arrival is a stage, and arrivals are a fold."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from command import perdure, refused
from perdure.api import init, learn, log, merge, report, revert, show, verify
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.merging.heads import head_of
from perdure.reporting.rerun import rerun
from tiny import save_tiny


pytestmark = pytest.mark.own
causal = pytest.mark.parametrize("kind", ["causal"])

WEIGHTS = "adapter_model.safetensors"
STATE = "merge.safetensors"


def trained_adapter(to: str, seed: int, **settings) -> Path:
    """A LoRA adapter on the base whose factors are drawn."""
    base = AutoModelForCausalLM.from_pretrained("base")
    config = LoraConfig(
        task_type="CAUSAL_LM", init_lora_weights=False, **{"r": 3, "lora_alpha": 6, **settings}
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(base, config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(to, save_embedding_layers=False)
    return Path(to)


def merged_weights(folder: Path | str) -> dict[str, torch.Tensor]:
    """The weights of the base with an adapter merged in."""
    base = AutoModelForCausalLM.from_pretrained("base")
    return PeftModel.from_pretrained(base, str(folder)).merge_and_unload().state_dict()


def base_weights() -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained("base").state_dict()


def assert_sum(folder: Path, parts: list[tuple[float, Path | str]]) -> None:
    """A stage's change is the sum of those of some adapters, each with a coefficient."""
    base, merged = base_weights(), merged_weights(folder)
    changes = [(c, merged_weights(part)) for c, part in parts]
    for name, weights in merged.items():
        wanted = base[name].double() + sum(
            c * (w[name].double() - base[name].double()) for c, w in changes
        )
        torch.testing.assert_close(weights.double(), wanted, atol=1e-5, rtol=1e-4)


@causal
def test_adapters_arrive_one_after_another_as_if_all_at_once(place):
    first, second = trained_adapter("first", 1), trained_adapter("second", 2)
    learned = Lineage("lineage").folder(Lineage("lineage").stages[-1])
    rank = 8 + 3 + 3  # all of the sum
    told = perdure(
        *("merge", "lineage", first, "--rank", rank, "--test", "colour-test.jsonl"),
        *("--name", "more"),
    )
    assert told.status == 0, told.err
    assert "stage 3 merged more by average; the scores:" in told.out
    assert (
        "stage 2 was not made by average with these keywords, and counts as the first" in told.err
    )
    entry = Lineage("lineage").stages[-1]
    assert (entry["verb"], entry["method"], entry["weight"]) == ("merge", "merged", None)
    assert entry["rule"] == {"average": {"exact": False}}
    assert [arrived["weight"] for arrived in entry["history"]] == [1.0, None]
    assert entry["discarded"] < 1e-9
    assert set(entry["scores"]) == {"colour", "animal", "more"}
    assert_sum(Lineage("lineage").folder(entry), [(1 / 2, learned), (1 / 2, first)])
    entry = merge(["lineage", second], rank=rank)
    assert entry["task"]["name"] == "second"
    assert len(entry["history"]) == 3
    parts = [(1 / 3, part) for part in (learned, first, second)]
    assert_sum(Lineage("lineage").folder(entry), parts)
    assert verify("lineage") == []
    assert log("lineage")[-1]["method"] == "merged"
    shown = perdure("show", "lineage").out
    assert "average (exact False); 3 checkpoints so far" in shown
    assert rerun(Lineage("lineage")).commands[-1] == (
        "# second: merged; perdure merge again CHECKPOINT --rule average --name second "
        "rule.exact=false"
    )
    assert "already merged, as stage 4" in perdure("merge", "lineage", second).err
    other = ("merge", "lineage", second, "--test", "animal-test.jsonl")
    refused(place, *other, names=("stage 4 has merged it with other test rows", "--to 3"))
    # The state of the stage before is still there after going back to it.
    revert("lineage", 3)
    again = merge(["lineage", second], rank=rank)
    assert again["stage"] == 5
    assert again["files"][WEIGHTS] == entry["files"][WEIGHTS]
    assert again["files"][STATE] == entry["files"][STATE]
    assert verify("lineage") == []
    assert perdure("report", "lineage").status == 0
    assert perdure("export", "lineage", "exported").status == 0


@causal
def test_what_the_rank_cuts_off_is_told_and_kept_in_the_state(place):
    adapters = [trained_adapter(name, seed) for seed, name in enumerate("abc")]
    init("fresh", base="base", method="sequential", **{"adapter": {"r": 4, "lora_alpha": 8}})
    lines: list[str] = []
    for adapter in adapters:
        entry = merge(["fresh", adapter], rule="task_arithmetic", weights=[0.5], say=lines.append)
    assert any("at rank 4, " in line and "is cut off" in line for line in lines)
    assert 0 < entry["discarded"] < 1
    stage = Lineage("fresh").folder(entry)
    assert json.loads((stage / "adapter_config.json").read_text())["r"] == 4
    # The best approximation of rank 4 of the whole sum, not of what had been cut off before.
    base, merged = base_weights(), merged_weights(stage)
    name = "model.layers.0.self_attn.q_proj.weight"
    total = sum(0.5 * (merged_weights(a)[name].double() - base[name].double()) for a in adapters)
    u, s, vh = torch.linalg.svd(total)
    best = (u[:, :4] * s[:4]) @ vh[:4]
    torch.testing.assert_close((merged[name] - base[name]).double(), best, atol=1e-5, rtol=1e-3)
    # What no adapter has changed can still be trained: A is as it was, and B is zero.
    tensors = load_file(stage / WEIGHTS)
    untouched = [n for n in tensors if "up_proj.lora_A" in n]
    assert untouched
    for name in untouched:
        assert tensors[name].abs().max() > 0
        assert not tensors[name.replace("lora_A", "lora_B")].any()


@causal
def test_a_lineage_learns_on_after_a_merge_and_the_next_merge_begins_anew(place):
    first, second = trained_adapter("first", 1), trained_adapter("second", 2)
    merge(["lineage", first], rule="ema")
    learned = learn("lineage", "more", train="colour-train.jsonl", test="colour-test.jsonl")
    assert learned["parent"] == 3
    lines: list[str] = []
    merge(["lineage", second], rule="ema", weights=[0], say=lines.append)
    assert f"warning: weight 0: nothing of {second} is merged into the stage" in lines
    revert("lineage")
    lines.clear()
    entry = merge(["lineage", second], rule="ema", weights=[0.25], say=lines.append)
    assert not any(line.startswith("warning: weight") for line in lines)
    told = [line.split() for line in perdure("show", "lineage").out.splitlines()]
    assert not any(words[:1] == ["train"] for words in told)  # no rows were given
    assert any("counts as the first checkpoint" in line for line in lines)
    assert [a["weight"] for a in entry["history"]] == [1.0, 0.25]


@causal
def test_whole_weights_are_folded_with_any_rule(whole_place):
    for seed, name in ((1, "x"), (2, "y")):
        base = AutoModelForCausalLM.from_pretrained("base")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in base.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        base.save_pretrained(name, max_shard_size="30KB")
    trained_adapter("z", 3)
    names = ["x", "y", "z"]
    init("fresh", base="base", method="sequential", adapter=None)
    for rule, keywords in (("ties", {"density": 0.5}), ("opcm", {})):
        shutil.rmtree("one", ignore_errors=True)
        shutil.copytree("fresh", "one")
        for name in names:
            said: list[str] = []
            entry = merge(["one", name], rule=rule, keywords=keywords, say=said.append)
        merge(names, base="base", into=f"all-{rule}", rule=rule, keywords=keywords)
        folded = load_file(Lineage("one").folder(entry) / "model.safetensors")
        once = load_file(f"all-{rule}/model.safetensors")
        assert folded.keys() == once.keys()
        assert all(torch.equal(folded[name], once[name]) for name in once)
        assert len(entry["history"]) == 3
        assert "stages keep theirs; nothing makes them again, because the stage was not" in said[-1]
        assert verify("one") == []
        told = perdure("verify", "one").out
        assert "the weights of stage 1 were dropped; nothing makes them again" in told
        # Only the newest two stages keep weights and state.
        assert [show("one", n)["weights_kept"] for n in (1, 2, 3)] == [False, True, True]
        states = sorted(path.parent.name for path in Path("one").rglob(STATE))
        assert states == ["0002-y", "0003-z"]
    learned = learn("one", "more", train="colour-train.jsonl", test="colour-test.jsonl")
    assert learned["parent"] == 3


@causal
def test_a_gate_refuses_an_arrival_and_the_lineage_stays(place):
    bad = trained_adapter("bad", 1)
    tensors = load_file(bad / WEIGHTS)
    save_file({name: 40 * tensor for name, tensor in tensors.items()}, bad / WEIGHTS)
    assert perdure("set", "lineage", "gate.kl=1e-6").status == 0
    for words in ("was refused: ", "was refused before, and is not merged again: "):
        told = perdure("merge", "lineage", bad, "--rule", "task_arithmetic")
        assert told.status == 3, told.err
        assert words in told.err
        assert Lineage("lineage").head == 2
    assert verify("lineage") == []


@causal
def test_weights_that_add_up_to_zero_over_the_arrivals_are_refused(place):
    """The newest stage was learned, and counts as a first checkpoint of weight 1."""
    adapter = trained_adapter("adapter", 1)
    words = ("average: the weights add up to 0; use task_arithmetic",)
    refused(place, "merge", "lineage", adapter, "--weight", "-1", names=words)
    merge(["lineage", adapter], weights=[2])
    other = trained_adapter("other", 2)
    refused(place, "merge", "lineage", other, "--weight", "-3", names=words)


@causal
def test_an_arrival_that_is_repeated_at_another_rank_is_refused(place):
    adapter = trained_adapter("adapter", 1)
    merge(["lineage", adapter], rank=4)
    assert merge(["lineage", adapter], rank=4)["stage"] == merge(["lineage", adapter])["stage"]
    words = ("stage 3 has merged it at rank 4", "perdure revert lineage --to 2")
    refused(place, "merge", "lineage", adapter, "--rank", 9, names=words)


@causal
def test_what_cannot_arrive_is_refused(place):
    adapter = trained_adapter("adapter", 1)

    def bad(*words: str, folder: Path | str = adapter, options: tuple = ()) -> None:
        refused(place, "merge", "lineage", folder, *options, names=words)

    bad("nowhere: no such folder, and not in the hub's cache", folder="nowhere")
    bad(f"did you mean '{adapter}'?", folder=f"{adapter}s")
    bad("ties: does more than to add task vectors", "use average", options=("--rule", "ties"))
    bad("base: is a whole model, but the stages of lineage have LoRA", folder="base")
    bad("weights: 2 for 1 checkpoints", options=("--weight", "1,2"))
    bad("--weight much: give numbers", options=("--weight", "much"))
    bad("rank: must be at least 1, got 0", options=("--rank", "0"))
    bad("base: a stage has the base of its lineage; leave base out", options=("--base", "base"))
    bad("full: a stage has the form of its lineage", options=("--full",))
    bad("a lineage, in which one checkpoint arrives at a time", options=("another",))
    bad("density must be > 0", options=("--rule", "ties", "rule.density=0"))
    bad("average has no keyword 'scale'", options=("rule.scale=1",))
    bad(
        "density=0.3: is no checkpoint; a rule's keyword is written rule.density=0.3",
        folder="density=0.3",
    )
    refused(place, "merge", adapter, "base", names=("give --into FOLDER for the merged model",))
    dora = trained_adapter("dora", 2, use_dora=True)
    bad("DoRA scales the weights themselves", "merge_and_unload", folder=dora)
    more = trained_adapter("more", 2, target_modules=["lm_head"])
    bad("changes lm_head, which the adapter of lineage has not", folder=more)
    save_tiny("causal", Path("other-base"), seed=5)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "other-base"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    bad("trained on another base, 'other-base'")


@pytest.mark.parametrize("kind", ["encoder"])
def test_the_head_of_an_encoder_takes_no_weight_below_zero(place):
    """Its row would be a mean with weights that cancel, from which nothing can be taken out."""
    init("one", base="base", adapter={"r": 4, "target_modules": ["query", "value"]})
    learn("one", "colour", train="colour-train.jsonl", test="colour-test.jsonl")
    init("merged", base="base", adapter={"r": 4, "target_modules": ["query", "value"]})
    merge(["merged", "one"], rule="task_arithmetic", test="colour-test.jsonl", name="first")
    negated = {"rule": "task_arithmetic", "weights": [-1]}
    with pytest.raises(PerdureError, match=r"one: weight -1: .* takes no weight below 0"):
        merge(["one"], into="out", base="base", **negated)
    with pytest.raises(PerdureError, match=r"one: weight -1: .* takes no weight below 0"):
        merge(["merged", "one"], name="second", **negated)
    assert len(Lineage("merged").stages) == 1
    assert not Path("out").exists()


@pytest.mark.parametrize("kind", ["encoder"])
def test_the_heads_of_encoders_are_merged_by_label(place):
    """A label that one expert has keeps its row; of one that several have, it is the mean."""
    file = {split: f"{{}}-{split}.jsonl" for split in ("train", "test")}
    adapter = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}
    experts = {"colour": ["colour"], "animal": ["animal"], "both": ["animal", "colour"]}
    for number, (expert, tasks) in enumerate(experts.items()):
        init(expert, base="base", adapter=adapter, seed=number)
        for task in tasks:
            learn(expert, task, **{split: name.format(task) for split, name in file.items()})
    heads = {name: head_of(Lineage(name).folder(Lineage(name).stages[-1])) for name in experts}
    init("merged", base="base", adapter=adapter)
    arrive = partial(merge, rule="task_arithmetic")
    for expert in ("colour", "animal"):
        entry = arrive(["merged", expert], name=expert, test=f"{expert}-test.jsonl", rank=8)
    assert entry["labels"] == dict.fromkeys({**heads["colour"], **heads["animal"]}, 1.0)
    assert_rows("merged", {**heads["colour"], **heads["animal"]})
    assert Lineage("merged").matrix().tasks == ("colour", "animal")
    arrive(["merged", "both"], weights=[3])
    apart = {**heads["colour"], **heads["animal"]}
    mean = {label: (apart[label] + 3 * row) / 4 for label, row in heads["both"].items()}
    assert_rows("merged", mean)
    assert "head.safetensors" in Lineage("merged").stages[-1]["checkpoint"]
    merge(["merged"], undo=3)
    assert_rows("merged", apart)
    merge(["merged"], undo=1)
    assert_rows("merged", heads["animal"])
    merge(["merged"], undo=2)
    assert not head_of(Lineage("merged").folder(Lineage("merged").stages[-1]))
    assert not verify("merged")
    merge(["colour", "animal"], into="at-once", rule="ties")
    assert head_of(Path("at-once")).keys() == apart.keys()
    for split, words in (("test", "is not an option"), ("train", "its head has no label")):
        options = ("merge", "merged", "colour", f"--{split}", f"animal-{split}.jsonl")
        refused(place, *options, names=(words,))


def assert_rows(lineage: str, wanted: dict[str, torch.Tensor]) -> None:
    """The newest stage of an encoder has a head with these rows."""
    found = head_of(Lineage(lineage).folder(Lineage(lineage).stages[-1]))
    assert found.keys() == wanted.keys()
    for label, row in wanted.items():
        torch.testing.assert_close(found[label], row, rtol=0, atol=1e-6)


@causal
def test_a_newest_stage_can_arrive_in_another_lineage(place):
    shutil.copytree("lineage", "other")
    learn("other", "more", train="colour-train.jsonl")
    said: list[str] = []
    entry = merge(["lineage", "other"], name="more", rule="ema", say=said.append)
    score = Lineage("other").stages[-1]["scores"]["colour"]
    scored = merge(["lineage", "other"], name="colour again", rule="ema", test="colour-test.jsonl")
    assert scored["alone"] == score
    assert f"on its own, the checkpoint has {score:.3f}" in perdure("show", "lineage").out
    report("lineage", out="page.html")
    assert f"on its own, the checkpoint has {score:.3f}" in Path("page.html").read_text()
    assert any(
        "the newest stage of other was merged into the lineage lineage" in line for line in said
    )
    other = Lineage("other")
    assert entry["checkpoint"][WEIGHTS] == other.stages[-1]["files"][WEIGHTS]
    assert show("lineage")["verdict"] is not None
