"""`export`: a plain model that needs neither Perdure nor PEFT and gives what the stage gives."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from command import perdure, tree
from perdure import PerdureError
from perdure.api import answer, export, run, verify
from perdure.config import load_config
from perdure.data.rows import read_rows
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import base_at
from perdure.verbs import export as module
from place import init, learn, learned, output, setting_for, stage_output, task
from tiny import KINDS, tiny_tokenizer
from train.engine import Stopped


AUTO = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM, "encoder": AutoModel}
causal = pytest.mark.parametrize("kind", ["causal"])


def plain_output(kind: str, folder: str = "out") -> torch.Tensor:
    model = AUTO[kind].from_pretrained(folder)
    assert not list(Path(folder).glob("adapter*"))
    return output(model, AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("stage", [2, 1, 0])
def test_it_gives_what_the_stage_gives(place, kind, stage):
    before = tree(place)
    assert export("lineage", "out", stage) == Path("out")
    torch.testing.assert_close(plain_output(kind), stage_output("lineage", stage))
    shutil.rmtree("out")
    assert tree(place) == before


def test_the_newest_stage_is_not_the_one_before(place, kind):
    export("lineage", "out")
    assert not torch.allclose(plain_output(kind), stage_output("lineage", 1))


def test_whole_weights_are_the_same_bitwise(whole_place, kind):
    for stage in (2, 1):
        export("lineage", f"out{stage}", stage)
        assert torch.equal(plain_output(kind, f"out{stage}"), stage_output("lineage", stage))
    stored = load_file("lineage/stages/0002-animal/model.safetensors")
    exported = load_file("out2/model.safetensors")
    assert stored.keys() == exported.keys()
    assert all(torch.equal(stored[name], exported[name]) for name in stored)


@pytest.mark.slow  # tests/lineage/test_modes.py runs the lines of the cards of stages
def test_the_lines_of_its_card_run_as_they_stand(template, tmp_path):
    """In a process that has no PEFT; they give what the stage answers."""
    lines, answers = ["import sys", "sys.modules['peft'] = None"], []
    for kind in KINDS:
        with contextlib.chdir(template(kind, False)):
            export("lineage", tmp_path / kind)
            prompt = read_rows(Path("animal-test.jsonl"))[0]["prompt"]
            answers += answer("lineage", [prompt])
        code = (tmp_path / kind / "README.md").read_text().split("```python\n")[1].split("```")[0]
        lines.append(code.replace("some text", prompt))
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == answers


@pytest.mark.parametrize("kind", ["encoder"])
def test_an_encoder_that_learned_nothing_has_a_card_without_a_head(place):
    export("lineage", "out", 0)
    assert not Path("out/head.safetensors").exists()
    code = Path("out/README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "head" not in code
    exec(code, {})


@pytest.mark.parametrize("kind", ["encoder"])
def test_an_encoder_takes_its_head_along(place):
    export("lineage", "out")
    stored, exported = (
        load_file(f"{folder}/head.safetensors") for folder in ("lineage/stages/0002-animal", "out")
    )
    assert all(torch.equal(stored[name], exported[name]) for name in ("weight", "bias"))


@causal
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", None])
def test_the_declared_dtype(place, dtype):
    export("lineage", "out", dtype=dtype)
    expected = getattr(torch, dtype or "float32")
    assert {t.dtype for t in load_file("out/model.safetensors").values()} == {expected}
    model = AutoModelForCausalLM.from_pretrained("out")
    assert model.dtype == expected
    near = output(model, AutoTokenizer.from_pretrained("out"))
    torch.testing.assert_close(near.float(), stage_output("lineage"), rtol=0.05, atol=0.05)


def test_a_bf16_base_is_merged_in_fp32_and_rounded_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setting = setting_for("causal", tmp_path, n=16)
    AutoModelForCausalLM.from_pretrained("base").bfloat16().save_pretrained("base")
    lineage = learned({**setting, "tasks": setting["tasks"][:1]}, "lineage")
    export("lineage", "out")
    export("lineage", "full", dtype="float32")
    rounded, full = load_file("out/model.safetensors"), load_file("full/model.safetensors")
    for name, weight in full.items():
        assert torch.equal(rounded[name], weight.bfloat16())
    name = "model.layers.0.self_attn.q_proj.weight"
    layer = base_at(lineage, lineage.stages[-1]).peft.base_model.model.model.layers[0].self_attn
    delta = layer.q_proj.get_delta_weight("default")
    below = load_file("base/model.safetensors")[name].float()
    torch.testing.assert_close(full[name], below + delta, rtol=0, atol=1e-7)
    assert not torch.equal(full[name], full[name].bfloat16().float())


def test_weights_held_transposed_and_tied_embeddings(tmp_path, monkeypatch, place_of_gpt2):
    export("gpt2", "out")
    model = AutoModelForCausalLM.from_pretrained("out")
    assert model.lm_head.weight is model.transformer.wte.weight
    torch.testing.assert_close(plain_output("causal"), stage_output("gpt2"))
    assert not torch.allclose(plain_output("causal"), stage_output("gpt2", 0))


@pytest.fixture
def place_of_gpt2(template, tmp_path, monkeypatch):
    shutil.copytree(template("causal", False), tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    tokenizer = tiny_tokenizer("causal")
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained("wide")
    tokenizer.save_pretrained("wide")
    few = {"max_length": 32, "max_completion_length": 4, "threads": 1}
    init("gpt2", load_config({"base": "wide", "training": {"learning_rate": 1e-2}, **few}))
    learn("gpt2", task("colour"))


@causal
def test_an_adapter_that_does_not_merge(place):
    few = {"max_length": 32, "max_completion_length": 4, "threads": 1}
    adapter = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}
    init("other", load_config({"base": "base", "adapter": adapter, **few}))
    learn("other", task("colour"))
    assert not torch.equal(stage_output("other"), stage_output("other", 0))
    before = tree(place)
    with pytest.raises(PerdureError, match="a PREFIX_TUNING adapter cannot be merged"):
        export("other", "out")
    assert tree(place) == before


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_an_adapter_on_its_own_is_the_stages_and_its_card_runs(place, kind):
    before = tree(place)
    result = perdure("export", "lineage", "out", "--adapter", "--stage", 1, "--json")
    assert json.loads(result.out)["model"] == "out"
    stage = next(Path("lineage/stages").glob("0001-*"))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert Path("out", name).read_bytes() == (stage / name).read_bytes()
    code = Path("out/README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert 'stage = "out"' in code
    exec(compile(code, "README.md", "exec"), {})
    shutil.rmtree("out")
    assert tree(place) == before
    with pytest.raises(PerdureError, match="dtype: an adapter is written as it is"):
        export("lineage", "out", dtype="float32", adapter=True)


@causal
def test_whole_weights_have_no_adapter_to_export(whole_place, kind):
    with pytest.raises(PerdureError, match=r"stage 2 has no adapter; leave out --adapter"):
        export("lineage", "out", adapter=True)
    assert not Path("out").exists()


@causal
def test_an_adapter_for_each_task_is_exported_one_by_one(place):
    settings = Lineage("lineage").config.to_dict() | {"mode": "per_task", "lineage": "each"}
    run(load_config(settings))
    with pytest.raises(PerdureError, match=r"per_task has one adapter for each.* with --stage"):
        export("each", "out")
    with pytest.raises(PerdureError, match=r"per_task has one adapter for each.* with --stage"):
        export("each", "out", adapter=True)
    export("each", "out", 1)
    torch.testing.assert_close(plain_output("causal"), stage_output("each", 1))


@causal
def test_a_folder_that_is_not_empty_or_no_folder(place):
    for occupied in ("base", "base/config.json"):
        with pytest.raises(PerdureError, match=f"{occupied}: exists and is not empty"):
            export("lineage", occupied)
    Path("new").mkdir()
    export("lineage", "new")
    export("lineage", "deep/er/out")
    export("lineage", "deeper/still/out", adapter=True)
    assert Path("new/model.safetensors").exists()
    assert Path("deep/er/out/model.safetensors").exists()
    assert Path("deeper/still/out/adapter_model.safetensors").exists()
    assert not list(Path().rglob(".*.new"))


@causal
def test_a_crash_half_way_leaves_no_half_folder(place, monkeypatch):
    def stopped(*arguments, **keywords):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(module, "model_card", stopped)
        with pytest.raises(Stopped):
            export("lineage", "out")
    assert not Path("out").exists()
    export("lineage", "out")
    assert not list(Path().glob(".*.new"))


@causal
def test_an_unknown_dtype_or_stage(place):
    with pytest.raises(PerdureError, match="dtype 'bf16' is not a choice; did you mean 'bfloat16'"):
        export("lineage", "out", dtype="bf16")
    with pytest.raises(PerdureError, match="no stage 9"):
        export("lineage", "out", 9)
    assert not Path("out").exists()


@causal
def test_on_the_command_line(place):
    result = perdure("export", "lineage", "out", "--stage", 1, "--dtype", "bfloat16")
    assert result.out == "out: a plain model; its README.md shows how to load it\n"
    report = perdure("export", "lineage", "again", "--json").json
    assert report == {"lineage": "lineage", "model": "again"}
    assert verify("lineage") == []
    assert not list(Path("out").glob("*memory*"))
