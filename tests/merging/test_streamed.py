"""Merging files: what is written, what is refused, how much memory it takes, and going on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from command import perdure, refused, tree
from merging.models import (
    Killed,
    measured_for,
    merged_by_peft,
    save_adapter,
    save_expert,
    save_statistics,
    stopped_again_and_again,
    weights_of,
)
from perdure.api import merge
from perdure.errors import NotFiniteError, PerdureError
from perdure.merging import output, streamed
from perdure.merging.rules import names as rule_names
from tiny import save_tiny, tiny_model, tiny_tokenizer


pytestmark = pytest.mark.own
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    save_tiny("causal", folder / "base")
    for seed, name in enumerate("xyz", start=1):
        save_expert(folder / name, seed)
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_the_result_is_a_plain_model_that_says_what_it_is_made_of(place):
    (place / "base" / "chat_template.jinja").write_text("{{ messages }}")
    (place / "base" / "README.md").write_text("the card of the base")
    told = perdure(*("merge", "x", "y", "z", "--base", "base", "--into", "out"))
    assert told.status == 0, told.err
    assert told.err.startswith("note: x has another chat template than base")
    assert "plan: 21 tensors; reads " in told.err
    assert "out: a plain model; its README.md names what it was made of" in told.out
    model = AutoModelForCausalLM.from_pretrained("out")
    assert AutoTokenizer.from_pretrained("out").chat_template == "{{ messages }}"
    merged, experts = model.state_dict(), [weights_of(name) for name in "xyz"]
    for name, weights in merged.items():
        mean = torch.stack([expert[name].double() for expert in experts]).mean(0)
        torch.testing.assert_close(weights.double(), mean, atol=1e-6, rtol=1e-5)
    card = (place / "out" / "README.md").read_text()
    assert "with the rule `average` (exact=False)" in card
    assert "| 2: y |  | model.safetensors | `" in card
    assert sorted(p.name for p in place.iterdir()) == ["base", "out", "x", "y", "z"]
    assert oct((place / "out" / WEIGHTS).stat().st_mode) == oct(
        (place / "out" / "config.json").stat().st_mode
    )


def test_json_has_the_rule_the_hashes_and_the_cosines(place):
    told = perdure(
        *("merge", "x", "y", "rule.density=0.5", "--rule", "ties", "--weight", "1,0.5"),
        *("--base", "base", "--into", "out", "--json"),
    )
    assert told.status == 0, told.err
    result = told.json
    assert result["rule"] == {"ties": {"density": 0.5, "scale": 1.0, "exact": False}}
    assert [c["weight"] for c in result["checkpoints"]] == [1.0, 0.5]
    assert set(result["checkpoints"][0]["files"]) == {WEIGHTS}
    assert result["cosines"][0][0] == 1
    assert abs(result["cosines"][0][1]) < 0.2
    assert result["plan"]["memory"] > 0


@pytest.mark.parametrize("rule", rule_names())
def test_shards_adapters_and_one_after_another_give_the_same(rule, place, monkeypatch):
    """Sharded files, other sizes of pieces, and a run that was stopped after each tensor."""
    measured = measured_for(rule, "x", "y", "z")
    once = merge(["x", "y", "z"], base="base", into="once", rule=rule, **measured)
    model = AutoModelForCausalLM.from_pretrained("y")
    model.save_pretrained("sharded", max_shard_size="20KB")
    assert len(list(Path("sharded").glob("*.safetensors"))) > 2
    again = measured_for(rule, "x", "sharded", "z")  # drawn with the same seeds
    merge(["x", "sharded", "z"], base="base", into="again", rule=rule, **again)
    if rule != "dare":  # whose draws depend on the content of the files, and there are more now
        assert tree(Path("again"))[WEIGHTS] == tree(Path("once"))[WEIGHTS]
    stopped_again_and_again(
        lambda: merge(["x", "y", "z"], base="base", into="stopped", rule=rule, **measured),
        Path("stopped"),
    )
    assert tree(Path("stopped"))[WEIGHTS] == tree(Path("once"))[WEIGHTS]
    assert not list(Path().glob(".*"))
    assert once["norm"] > 0


KILLED = """
import os, signal, sys
from perdure.merging import output
finish, count = output.Output.finish, [0]
def killed(self, name, **facts):
    finish(self, name, **facts)
    count[0] += 1
    if count[0] == 9:
        os.kill(os.getpid(), signal.SIGKILL)
output.Output.finish = killed
from perdure.cli import main
main(sys.argv[1:])
"""


def _stopped_after_nine(patched) -> None:
    """Merge, but stop after nine tensors are written and in the journal."""
    finish, count = output.Output.finish, 0

    def finish_and_stop(self, name, **facts):
        nonlocal count
        finish(self, name, **facts)
        count += 1
        if count == 9:
            raise Killed

    patched.setattr(output.Output, "finish", finish_and_stop)
    with pytest.raises(Killed):
        merge(["x", "y"], base="base", into="out", rule="ties")


@pytest.mark.parametrize("by", ["an error", pytest.param("SIGKILL", marks=pytest.mark.slow)])
def test_a_killed_process_goes_on_and_ends_in_the_same_bytes(by, place):
    """The journal names only what is whole, also if the last line or the last bytes are not."""
    merge(["x", "y"], base="base", into="once", rule="ties")
    if by == "SIGKILL":
        arguments = ["merge", "x", "y", "--base", "base", "--into", "out", "--rule", "ties"]
        died = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True)
        assert died.returncode == -signal.SIGKILL
    else:
        with pytest.MonkeyPatch.context() as patched:
            _stopped_after_nine(patched)
    parts = Path(".out.merging/parts/model")
    lines = (parts / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 10
    done = json.loads(lines[3])["tensor"]
    with (parts / "journal.jsonl").open("a") as journal:
        journal.write('{"tensor": "model.norm.weight", "sha')  # a line that is not whole
    header = json.loads((parts / WEIGHTS).read_bytes()[8:].split(b"}}")[0].decode() + "}}")
    begin = header[done]["data_offsets"][0]
    length = int.from_bytes((parts / WEIGHTS).read_bytes()[:8], "little")
    with (parts / WEIGHTS).open("r+b") as file:  # bytes that did not reach the disk
        file.seek(8 + length + begin)
        file.write(b"\0\0\0\0")
    merge(["x", "y"], base="base", into="out", rule="ties")
    assert tree(Path("out")) == tree(Path("once"))


def test_what_was_begun_with_other_settings_is_begun_again(place, monkeypatch):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(streamed, "_add_vector", _raise)
        with pytest.raises(Killed):
            merge(["x", "y"], base="base", into="out", rule="opcm")
    assert Path(".out.merging").is_dir()
    merge(["x", "y"], base="base", into="out", rule="opcm", keywords={"alpha": 0.25})
    merge(["x", "y"], base="base", into="other", rule="opcm", keywords={"alpha": 0.25})
    assert tree(Path("out"))[WEIGHTS] == tree(Path("other"))[WEIGHTS]


def _raise(*_) -> None:
    raise Killed


@pytest.mark.parametrize("rule", rule_names())
def test_the_base_twice_is_the_base_and_one_checkpoint_itself(rule, place):
    measured = measured_for(rule, "base", "base")
    merge(["base", "base"], base="base", into="same", rule=rule, **measured)
    assert tree(Path("same"))[WEIGHTS] == tree(Path("base"))[WEIGHTS]
    unit = {"ties": {"density": 1}, "dare": {"density": 1}, "ema": {"weight": 1}}
    unit["breadcrumbs"] = {"density": 1, "gamma": 0}
    keywords, measured = unit.get(rule), measured_for(rule, "x")
    merge(["x"], base="base", into="one", rule=rule, keywords=keywords, **measured)
    one, expert = weights_of("one"), weights_of("x")
    for name in expert:
        torch.testing.assert_close(one[name], expert[name], rtol=0, atol=1e-7)


def test_bf16_in_and_out_is_rounded_once(place):
    for name, seed in (("base", 0), ("x", 1), ("y", 2)):
        shutil.rmtree(name)
        save_expert(name, seed, step=0.0 if name == "base" else 0.01, dtype=torch.bfloat16)
    merge(["x", "y"], base="base", into="out")
    merged, parts = weights_of("out"), [weights_of("x"), weights_of("y")]
    for name, weights in merged.items():
        assert weights.dtype == torch.bfloat16
        mean = (parts[0][name].double() + parts[1][name].double()) / 2
        assert torch.equal(weights, mean.to(torch.bfloat16)), name
    assert AutoModelForCausalLM.from_pretrained("out", dtype="auto").dtype == torch.bfloat16
    merge(["x", "y"], base="base", into="wide", dtype="float32")
    assert weights_of("wide")["lm_head.weight"].dtype == torch.float32
    assert AutoModelForCausalLM.from_pretrained("wide", dtype="auto").dtype == torch.float32


# --- LoRA ----------------------------------------------------------------------------------------

ADAPTERS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 5},
        "alpha_pattern": {"v_proj": 3},
    },
    "more modules": {"target_modules": ["up_proj", "down_proj", "lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "k_proj"]},
    "whole modules": {"modules_to_save": ["lm_head"]},
    "norms": {"modules_to_save": ["norm"]},
}


@pytest.mark.parametrize("kind", list(ADAPTERS))
def test_an_adapter_is_added_as_peft_does(kind, place):
    save_adapter("adapter", 1, **ADAPTERS[kind])
    merge(["adapter"], into="out", full=True)
    merged, wanted = weights_of("out"), merged_by_peft("base", "adapter")
    assert merged.keys() == wanted.keys()
    changed = 0
    for name, weights in wanted.items():
        torch.testing.assert_close(merged[name], weights, atol=1e-6, rtol=1e-5)
        changed += not torch.equal(merged[name], weights_of("base")[name])
    assert changed >= 2


def gpt2(folder: str, bias: bool = True):
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(tiny_tokenizer("causal")), n_embd=32, n_layer=2, n_head=4
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer("causal").save_pretrained(folder)


def test_transposed_layers_and_biases(place):
    gpt2("gpt2")
    settings = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    save_adapter("one", 1, base="gpt2", **settings, bias="all")
    save_adapter("two", 2, base="gpt2", **settings, bias="lora_only")
    for name in ("one", "two"):
        merge([name], into=f"out-{name}", full=True)
        merged, wanted = weights_of(f"out-{name}"), merged_by_peft("gpt2", name)
        for tensor, weights in merged.items():
            torch.testing.assert_close(weights, wanted[tensor], atol=1e-6, rtol=1e-5)


def test_full_checkpoints_and_adapters_mix(place):
    save_adapter("adapter", 1)
    merge(["x", "adapter"], base="base", into="out", rule="task_arithmetic", weights=[0.5, 1])
    base, expert = weights_of("base"), weights_of("x")
    adapted, merged = merged_by_peft("base", "adapter"), weights_of("out")
    for name, weights in merged.items():
        wanted = 0.5 * base[name] + 0.5 * expert[name] + adapted[name] - base[name]
        torch.testing.assert_close(weights, wanted, atol=1e-6, rtol=1e-5)


def test_lora_in_lora_out_is_exact_where_combinations_of_peft_are_not(place):
    """PEFT's `linear` adds factors, not products; our error is that of fp32."""
    from peft import PeftModel

    save_adapter("one", 1, r=4)
    save_adapter("two", 2, r=4, use_rslora=True)
    result = merge(["one", "two"], into="out", weights=[0.5, 0.5])
    assert (result["kind"], result["rank"]) == ("adapter", 8)
    assert result["discarded"] < 1e-12
    base = weights_of("base")
    parts = [merged_by_peft("base", name) for name in ("one", "two")]
    ours = merged_by_peft("base", "out")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained("base"), "one", adapter_name="one"
    )
    model.load_adapter("two", "two")
    model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "both", combination_type="linear")
    model.set_adapter("both")
    peft = model.merge_and_unload().state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    change = sum(0.5 * (part[name].double() - base[name].double()) for part in parts)

    def error(weights) -> float:
        return ((weights[name].double() - base[name] - change).norm() / change.norm()).item()

    assert error(ours) < 1e-5
    assert error(peft) > 0.5
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (8, 8, False)
    assert LoraConfig.from_pretrained("out").base_model_name_or_path == "base"


def test_adapters_of_other_ranks_and_modules_merge_to_one_of_a_capped_rank(place):
    save_adapter("one", 1, r=2)
    save_adapter("two", 2, **ADAPTERS["patterns"])
    save_adapter("three", 3, **ADAPTERS["more modules"])
    told = perdure(
        *("merge", "one", "two", "three", "--into", "out", "--rank", "3"),
        *("--rule", "task_arithmetic", "--weight", "1,-0.5,2"),
    )
    assert told.status == 0, told.err
    assert "rank 3; cut off: " in told.out
    base, merged = weights_of("base"), merged_by_peft("base", "out")
    parts = [merged_by_peft("base", name) for name in ("one", "two", "three")]
    cut = energy = 0.0
    for name, weights in merged.items():
        change = sum(
            w * (part[name].double() - base[name].double())
            for w, part in zip((1, -0.5, 2), parts, strict=True)
        )
        if not change.any():
            assert torch.equal(weights, base[name])
            continue
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
        best = (u[:, :3] * s[:3]) @ vh[:3]
        torch.testing.assert_close(weights.double() - base[name], best, atol=1e-5, rtol=1e-3)
        cut, energy = cut + s[3:].square().sum(), energy + s.square().sum()
    shown = f"rank 3; cut off: {cut / energy:.2%}"
    assert shown in told.out
    merge(["one", "two"], into="first", weights=[1, 0])
    first = merged_by_peft("base", "first")
    for name, weights in parts[0].items():
        torch.testing.assert_close(first[name], weights, atol=1e-6, rtol=1e-5)


def test_a_rule_that_does_more_than_to_add_writes_a_whole_model(place):
    save_adapter("one", 1)
    save_adapter("two", 2)
    lines: list[str] = []
    result = merge(["one", "two"], into="out", rule="ties", say=lines.append)
    assert result["kind"] == "weights"
    assert any(line.startswith("note: ties does more than to add") for line in lines)
    with pytest.raises(PerdureError, match="rank: is that of a merged adapter"):
        merge(["one", "two"], into="other", rule="ties", rank=2)


# --- preflight -----------------------------------------------------------------------------------


def edit(folder: str, **changes) -> None:
    """Change keys of a config."""
    file = Path(folder) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_what_cannot_be_merged_is_refused_before_a_byte_is_written(place):
    def bad(*words: str, models: tuple[str, ...] = ("x", "y"), options: tuple = ()) -> None:
        arguments = (*models, "--base", "base", "--into", "out", *options)
        refused(place, "merge", *arguments, names=words)

    bad("nowhere: no such folder, and not in the hub's cache", models=("x", "nowhere"))
    refused(place, "merge", "x", "--into", "out", names=("as --base BASE",))
    refused(place, "merge", "x", "--base", "base", names=("give --into FOLDER",))
    words = ("nolineage: is no lineage, in which a checkpoint could arrive", "give --into FOLDER")
    refused(place, "merge", "nolineage", "x", names=words)
    Path("my-model").mkdir()
    Path("my-model/lineage.yaml").touch()
    words = ("my-modle: is no lineage, in which a checkpoint could arrive", "mean my-model?")
    refused(place, "merge", "my-modle", "x", names=words)
    words = ("undo: my-modle is no lineage; did you mean my-model?",)
    refused(place, "merge", "my-modle", "--undo", 1, names=words)
    refused(place, "merge", "x", "--base", "base", "--into", "y", names=("is not empty",))
    bad("dtype 'bf16' is not a choice", options=("--dtype", "bf16"))
    bad("unknown rule 'linear'; did you mean 'average'?", options=("--rule", "linear"))
    bad("name: is for a checkpoint that arrives in a lineage", options=("--name", "more"))
    bad("weights: 3 for 2 checkpoints", options=("--weight", "1,2,3"))
    bad("max_memory 'much': give bytes, such as 2GB", options=("--max-memory", "much"))
    bad("rule.a.b: a rule's keyword is written rule.KEY=VALUE", options=("rule.a.b=1",))
    full = weights_of("y")
    name = "model.layers.1.mlp.up_proj.weight"

    def with_weights(**changes) -> None:
        tensors = {n: changes.get(n, w) for n, w in full.items()}
        tensors |= {n: w for n, w in changes.items() if n not in tensors}
        kept = {n: w for n, w in tensors.items() if w is not None}
        save_file(kept, Path("y") / WEIGHTS, metadata={"format": "pt"})

    with_weights(**{name: full[name][:5].contiguous()})
    bad(f"y: is of another shape: {name} is 5 x 32, and 64 x 32 in the base")
    with_weights(**{name: None})
    bad(f"y: has no {name}, which the base has")
    with_weights(extra=torch.ones(3))
    bad("y: has extra, which the base has not")
    for value in (float("nan"), float("inf")):
        with_weights(**{name: torch.full_like(full[name], value)})
        told = perdure("merge", "x", "y", "--base", "base", "--into", "out")
        line = told.err.splitlines()[-1]  # below the plan
        assert told.status == 2
        assert f"error: y: its {name} has values that are infinite or not numbers" in line
    with_weights(**{name: full[name].to(torch.float8_e4m3fn)})
    bad("is of data type F8_E4M3, which is quantised")
    with_weights(**{name: full[name].to(torch.int8)})
    bad(f"y: {name} is of type I8, and F32 in the base")
    with_weights()
    (Path("y") / "adapter_model.bin").write_bytes(b"")
    for key, value, words in (
        ("rms_norm_eps", 0.5, "rms_norm_eps is 0.5 in its config.json, and 1e-06 in the base's"),
        ("vocab_size", 99, "vocab_size is 99"),
        ("model_type", "mistral", "model_type is 'mistral'"),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "weights are quantised"),
    ):
        shutil.copy("x/config.json", "y/config.json")
        edit("y", **{key: value})
        bad(words)
    shutil.copy("x/config.json", "y/config.json")
    (Path("y") / WEIGHTS).write_bytes(b"no tensors")
    bad("model.safetensors: does not load")
    (Path("y") / WEIGHTS).unlink()
    (Path("y") / "pytorch_model.bin").write_bytes(b"")
    bad("y: adapter_model.bin is a pickle, which could run code")
    assert not Path("out").exists()


def test_another_vocabulary_is_refused_and_another_template_is_told(place):
    tokenizer = tiny_tokenizer("causal")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained("x")
    lines: list[str] = []
    merge(["x", "y"], base="base", into="out", say=lines.append)
    assert any("x has another chat template than base" in line for line in lines)
    text = (place / "y" / "tokenizer.json").read_text()
    (place / "y" / "tokenizer.json").write_text(text.replace('"red"', '"crimson"'))
    words = ("y: its vocabulary is not the base's (2 tokens differ, such as 'crimson')",)
    refused(place, "merge", "x", "y", "--base", "base", "--into", "again", names=words)


def test_a_model_of_another_base_gives_a_warning(place):
    shutil.copytree("base", "copy")
    model = tiny_model("causal")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    model.save_pretrained("other")
    lines: list[str] = []
    merge(["other", "x", "copy"], base="base", into="out", say=lines.append)
    warned = [line for line in lines if line.startswith("warning: ")]
    assert len(warned) == 2
    assert "other differs from base by 200%" in warned[0]
    assert "copy has exactly the weights of base" in warned[1]


def test_tied_weights_are_merged_once(place):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**tiny_model("causal").config.to_dict(), "tie_word_embeddings": True})
    for seed, name in enumerate(("tied", "p", "q")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            LlamaForCausalLM(config).save_pretrained(name)
        tiny_tokenizer("causal").save_pretrained(name)
    table = "model.embed_tokens.weight"
    tensors = weights_of("q")
    assert "lm_head.weight" not in tensors
    both = {**tensors, "lm_head.weight": tensors[table].clone()}  # as some tools save it
    save_file(both, Path("q") / WEIGHTS, metadata={"format": "pt"})
    merge(["p", "q"], base="tied", into="out")
    merged = weights_of("out")
    assert "lm_head.weight" not in merged
    mean = (weights_of("p")[table] + tensors[table]) / 2
    torch.testing.assert_close(merged[table], mean)
    both["lm_head.weight"] = both["lm_head.weight"] + 1
    save_file(both, Path("q") / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(PerdureError, match=r"its lm_head\.weight is not its model"):
        merge(["p", "q"], base="tied", into="other")
    for target, words in (("lm_head", "which is model.embed"), ("embed_tokens", "output layer")):
        save_adapter(f"on-{target}", 1, base="tied", target_modules=[target])
        with pytest.raises(PerdureError, match=words):
            merge([f"on-{target}"], into="other", full=True)


def test_buffers_are_copied_and_must_be_the_same(place):
    for name in ("base", "x", "y"):
        tensors = {**weights_of(name), "model.steps": torch.arange(5)}
        save_file(tensors, Path(name) / WEIGHTS, metadata={"format": "pt"})
    merge(["x", "y"], base="base", into="out")
    assert torch.equal(weights_of("out")["model.steps"], torch.arange(5))
    without = {name: t for name, t in weights_of("x").items() if name != "model.steps"}
    save_file(without, Path("x") / WEIGHTS, metadata={"format": "pt"})
    merge(["x", "y"], base="base", into="again")  # newer files may leave a buffer out
    assert weights_of("again").keys() == weights_of("out").keys()
    assert all(torch.equal(t, weights_of("out")[name]) for name, t in weights_of("again").items())
    save_file(
        {**weights_of("y"), "model.steps": torch.arange(1, 6)},
        Path("y") / WEIGHTS,
        metadata={"format": "pt"},
    )
    with pytest.raises(PerdureError, match=r"its model\.steps, which is no weight"):
        merge(["x", "y"], base="base", into="other")


def test_weights_that_do_not_fit_the_data_type_are_refused(place):
    with pytest.raises(NotFiniteError, match="the merged weights do not fit float16"):
        merge(
            ["x"], base="base", into="out", rule="task_arithmetic", weights=[1e9], dtype="float16"
        )
    assert not list(Path().glob(".*"))


def unsupported():
    yield {"use_dora": True}, "DoRA scales the weights themselves"
    yield {"layer_replication": [[0, 1]]}, "it has other layers than its base"
    yield {"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base's"
    yield {"peft_type": "IA3"}, "is a IA3 adapter, and only LoRA can be merged"
    yield {"use_qalora": True}, "its setting use_qalora has an effect that merging does not know"
    yield {"lora_alpha": "much"}, "lora_alpha 'much' is no number"


@pytest.mark.parametrize(("settings", "words"), list(unsupported()))
def test_an_adapter_that_is_more_than_a_sum_is_refused(settings, words, place):
    save_adapter("adapter", 1)
    file = Path("adapter/adapter_config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    refused(place, "merge", "adapter", "--into", "out", names=(words,))


def test_an_adapter_of_another_base_or_other_tensors_is_refused(place):
    save_adapter("adapter", 1)
    save_tiny("causal", Path("other"), seed=5)
    refused(
        *(place, "merge", "adapter", "x", "--base", "other", "--into", "out"),
        names=("was trained on another base, 'base'",),
    )
    file = Path("adapter/adapter_model.safetensors")
    tensors = load_file(file)
    renamed = {name.replace("layers.0", "layers.7"): tensor for name, tensor in tensors.items()}
    save_file(renamed, file)
    words = ("which the base's files have not under this name",)
    refused(place, "merge", "adapter", "--into", "out", "--full", names=words)
    save_file({**tensors, "base_model.model.lora_odd": torch.ones(1)}, file)
    refused(place, "merge", "adapter", "--into", "out", names=("is of no known use",))
    first = next(name for name in tensors if "lora_B" in name)
    save_file({name: t for name, t in tensors.items() if name != first}, file)
    of_module = first.partition(".lora_B")[0]
    words = (f"lacks {first}, a factor of", "the file is damaged")
    refused(place, "merge", "adapter", "--into", "out", names=words)
    other = next(name for name in tensors if name.startswith(f"{of_module}.lora_A"))
    save_file({name: t for name, t in tensors.items() if name != other}, file)
    words = (f"lacks the factor A of {first}", "the file is damaged")
    refused(place, "merge", "adapter", "--into", "out", names=words)
    save_file({**tensors, first: tensors[first][:, 1:].contiguous()}, file)
    words = ("which have no product", "the file is damaged")
    refused(place, "merge", "adapter", "--into", "out", names=words)
    save_file({**tensors, first: tensors[first][0].contiguous()}, file)
    words = ("only linear layers and embeddings can be merged",)
    refused(place, "merge", "adapter", "--into", "out", names=words)
    save_file({n: t * float("nan") for n, t in tensors.items()}, file)
    refused(place, "merge", "adapter", "--into", "out", names=("infinite or not numbers",))


# --- memory --------------------------------------------------------------------------------------


def test_a_limit_of_memory_that_is_too_small_is_refused(place):
    def bad(*words: str, rule: str) -> None:
        arguments = ("x", "y", "--base", "base", "--into", "out", "--rule", rule)
        refused(place, "merge", *arguments, "--max-memory", "1kB", names=words)

    bad("max_memory is 1.0 kB; a piece of a tensor is the least", rule="ties")
    bad("opcm needs whole tensors, so allow more, or take a rule that works in pieces", rule="opcm")


PEAK = """
import json, resource, sys
import torch, transformers
from perdure import api
from perdure.merging.rules import names
from perdure.verbs import merge
more = json.loads(sys.argv[3])
small, big = ({"statistics": [f"{size}-{n}-statistics" for n in "xy"]} if more.pop(size) else {}
              for size in ("small", "big"))
api.merge(["small-x", "small-y"], base="small", into="warm", rule=sys.argv[1], **small, **more)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = api.merge(["big-x", "big-y"], base="big", into="out", rule=sys.argv[1],
                   max_memory=sys.argv[2], **big, **more)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(result["plan"]["memory"], 1024 * (peak - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["average", "ties", "dare", "fisher", "average after lines"])
def test_the_peak_of_memory_is_within_the_limit_for_a_model_ten_times_as_large(
    rule, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    limit = 110_000_000
    rule, _, treatment = rule.partition(" after ")
    more: dict = dict.fromkeys(("small", "big"), rule == "fisher")
    more |= {"after": [treatment]} if treatment else {}
    config = tiny_model("causal").config
    for name, rows in (("small", 16), ("big", limit * 10 // (4 * 1024))):
        for seed, suffix in enumerate(("", "-x", "-y")):
            folder = Path(f"{name}{suffix}")
            save_tiny("causal", folder)
            generator = torch.Generator().manual_seed(seed)
            tensor = torch.randn(rows, 1024, generator=generator)
            stored = {"layers.0.w.weight": tensor, "layers.1.w.weight": tensor[:1].clone()}
            save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
            if rule == "fisher":
                save_statistics(f"{folder}-statistics", str(folder), rule, seed)
    assert config.model_type == "llama"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, rule, str(limit), json.dumps(more)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert ran.returncode == 0, ran.stderr
    planned, peak = map(int, ran.stdout.split())
    assert planned <= limit
    assert peak <= limit
