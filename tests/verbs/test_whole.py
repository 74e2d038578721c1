"""Whole weights in place of an adapter (`adapter: null`)."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from perdure import PerdureError
from perdure.api import evaluate, merge, revert, run, verify
from perdure.config import load_config
from perdure.lineage.lineage import Lineage
from perdure.models.stage_files import read_head
from perdure.train import stage
from perdure.verbs import merge as verbs_merge
from place import init, learn, output, stage_output, task
from train.engine import Stopped


AUTO = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM, "encoder": AutoModel}
FEW = {
    "base": "base",
    "adapter": None,
    "training": {"learning_rate": 1e-3, "num_train_epochs": 1},
    "max_length": 64,
    "max_completion_length": 4,
    "threads": 1,
}
WEIGHTS = "stages/0001-colour/model.safetensors"


def plain_output(kind: str, folder: str) -> torch.Tensor:
    model = AUTO[kind].from_pretrained(folder)
    return output(model, AutoTokenizer.from_pretrained(folder))


def test_a_stage_is_a_plain_model_bitwise_the_live_one(whole_place, kind, monkeypatch):
    for entry in Lineage("lineage").stages:
        folder = f"lineage/{entry['folder']}"
        assert entry["kind"] == "weights"
        assert torch.equal(plain_output(kind, folder), stage_output("lineage", entry["stage"]))
    outputs = [stage_output("lineage", number) for number in (0, 1, 2)]
    assert torch.equal(outputs[0], plain_output(kind, "base"))
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])
    assert not list(Path("lineage").rglob("adapter*"))
    live, original = [], stage.save_weights

    def save_weights(base, folder):
        live.append(output(base.network, base.tokenizer))
        original(base, folder)

    monkeypatch.setattr(stage, "save_weights", save_weights)
    learn("lineage", task("colour"))
    assert torch.equal(live[0], plain_output(kind, "lineage/stages/0003-colour"))


def test_the_card_loads_it(whole_place, kind):
    card = Path("lineage/stages/0002-animal/README.md").read_text()
    here = 'stage = "."'
    code = card.split("```python\n")[1].split("```")[0]
    assert here in code
    code = code.replace(here, 'stage = "lineage/stages/0002-animal"')
    names: dict = {}
    exec(code, names)
    assert torch.equal(output(names["model"], names["tokenizer"]), stage_output("lineage", 2))
    assert "peft" not in card.lower()


def test_lineages_are_merged_on_the_base_with_which_they_began(whole_place, kind):
    shutil.copytree("lineage", "other")
    revert("other", 1)
    models = ["lineage", "other"]
    merge(models, into="merged")
    merge(models, into="told", base="base")
    weights = [load_file(f"{folder}/model.safetensors") for folder in ("merged", "told")]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    card = Path("merged/README.md").read_text()
    assert card == Path("told/README.md").read_text()
    assert ("Labels of the head" in card) == (kind == "encoder")
    if kind == "encoder":
        labels, head, _ = read_head(Path("merged"))
        assert f"in its order: {', '.join(f'`{label}`' for label in labels)}." in card
        code = card.split("```python\n")[1].split("```")[0]
        names: dict = {}
        exec(code.replace('stage = "."', 'stage = "merged"'), names)
        assert names["label"] in labels
        assert torch.equal(names["head"]["weight"], head)
    elsewhere = replace(verbs_merge.open_model("other"), pin={"name": "new", "files": {"w": "1"}})
    with pytest.raises(PerdureError, match="lineage began with base, and other with new, which"):
        verbs_merge._base_name(None, [verbs_merge.open_model("lineage"), elsewhere])


def test_row_0_is_the_untouched_base(whole_place, kind, monkeypatch):
    for split in ("train", "test"):  # the base was asked the rows of "colour" before
        rows = Path(f"colour-{split}.jsonl").read_text().splitlines(keepends=True)
        Path(f"other-{split}.jsonl").write_text("".join(rows[1:]))
    scored_models, original = [], stage.score

    def score(base, task, *rest):
        scored_models.append((task.name, output(base.network, base.tokenizer)))
        return original(base, task, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "score", score)
        learn("lineage", task("other"))
    if kind == "encoder":  # has no head on the base, so no score
        assert Lineage("lineage").matrix().rows[0] == (None, None, None)
        return
    began = [
        logits for name, logits in scored_models if torch.equal(logits, plain_output(kind, "base"))
    ]
    assert len(began) == 1
    assert torch.equal(scored_models[0][1], stage_output("lineage", 2))
    lineage = Lineage("lineage")
    scored = evaluate("lineage", 0)
    assert lineage.matrix().rows[0] == tuple(
        scored[e["task"]["id"]]["score"] for e in lineage.stages
    )


@pytest.mark.parametrize("kind", ["causal"])
def test_a_bf16_base_is_trained_in_fp32(whole_place, kind):
    AutoModelForCausalLM.from_pretrained("base").bfloat16().save_pretrained("half")
    AutoTokenizer.from_pretrained("base").save_pretrained("half")
    init("small", load_config({**FEW, "base": "half"}))
    few = {"learning_rate": 1e-6}  # such steps are lost in bf16
    learn("small", task("colour", few))
    before, after = load_file("half/model.safetensors"), load_file(f"small/{WEIGHTS}")
    assert {t.dtype for t in before.values()} == {torch.bfloat16}
    assert {t.dtype for t in after.values()} == {torch.float32}
    moved = [name for name, t in after.items() if not torch.equal(t, before[name].float())]
    assert len(moved) == len(after)
    learn("small", task("animal", few))
    assert torch.equal(plain_output(kind, "small/stages/0002-animal"), stage_output("small", 2))


def test_rehearsal_and_fusion_work_on_it(whole_place, kind):
    settings = Lineage("lineage").config.to_dict()
    method = ["replay", {"recurrent_kif": {"inner_steps": 2, "outer_steps": 1}}]
    lineage = run(load_config({**settings, "method": method, "lineage": "both"}))
    folder = lineage.folder(lineage.stages[-1])
    plain = load_file("lineage/stages/0002-animal/model.safetensors")
    fused = load_file(folder / "model.safetensors")
    assert any(not torch.equal(plain[name], fused[name]) for name in plain)
    assert load_file(folder / "method.safetensors")["recurrent_kif.shares"].shape == (2, 4)
    assert all(t.isfinite().all() for t in fused.values())


def test_only_the_last_two_keep_their_weights(whole_place, kind, monkeypatch):
    said = []
    entry = learn("lineage", task("colour"), say=said.append)
    assert entry["dropped"] == ["stages/0001-colour"]
    assert said[-1] == (
        "note: the weights of stage 1 were deleted, because without an adapter only the newest 2 "
        "stages keep theirs; `perdure repair lineage --stage 1` learns it again from its rows"
    )
    file_names = {path.name for path in Path("lineage/stages/0001-colour").iterdir()}
    assert {"scores.json", "memory.jsonl", "README.md", "config.json"} <= file_names
    assert not [name for name in file_names if name.startswith("model")]
    assert ("head.safetensors" in file_names) == (kind == "encoder")
    with pytest.raises(
        PerdureError, match=r"stage 1 were removed, only its scores remain.*2, 3, and"
    ):
        evaluate("lineage", 1)
    assert list(evaluate("lineage", 2)) == ["colour", "animal", "colour@3"]

    unlink = Path.unlink

    def stopped(file, missing_ok=False):
        if file.name.startswith("model"):
            raise Stopped
        unlink(file, missing_ok=missing_ok)

    with monkeypatch.context() as patch:  # after the ledger line, before the weights are gone
        patch.setattr(Path, "unlink", stopped)
        with pytest.raises(Stopped):
            learn("lineage", task("animal"))
    assert Path("lineage/stages/0002-animal/model.safetensors").exists()
    assert learn("lineage", task("animal"))["stage"] == 4
    assert not Path("lineage/stages/0002-animal/model.safetensors").exists()
    assert verify("lineage") == []
