"""`adopt`: a checkpoint that was trained elsewhere becomes a stage as if it was learned here."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from command import perdure, refused
from perdure.api import adopt, learn, log, revert, show, verify
from perdure.lineage.lineage import Lineage
from perdure.reporting.rerun import rerun
from tiny import save_tiny


pytestmark = pytest.mark.own
causal = pytest.mark.parametrize("kind", ["causal"])

WEIGHTS = "adapter_model.safetensors"
ROWS = {"train": "colour-train.jsonl", "test": "colour-test.jsonl"}


def trained_elsewhere(to: str = "checkpoint", step: float = 0.05) -> Path:
    """The newest stage's adapter after a step of plain PyTorch, as PEFT saves it."""
    stage = Lineage("lineage").folder(Lineage("lineage").stages[-1])
    base = AutoModelForCausalLM.from_pretrained("base")
    model = PeftModel.from_pretrained(base, stage, is_trainable=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += step
    model.save_pretrained(to)
    return Path(to)


@causal
def test_a_checkpoint_is_the_stage_that_learning_would_have_made(place):
    shutil.copytree("lineage", "other")
    learned = learn("other", "more", **ROWS)
    checkpoint = Path("other") / learned["folder"]
    entry = adopt("lineage", checkpoint, "more", **ROWS)
    assert (entry["verb"], entry["stage"], entry["parent"]) == ("adopt", 3, 2)
    assert entry["checkpoint"] == {WEIGHTS: learned["files"][WEIGHTS]}
    for name in (WEIGHTS, "memory.jsonl", "scores.json", "predictions.json.gz"):
        assert entry["files"][name] == learned["files"][name], name
    assert verify("lineage") == []
    assert log("lineage")[-1]["method"] == "adopted"
    verdicts = [show(folder)["verdict"] for folder in ("lineage", "other")]
    # A checkpoint has no time of learning of which the guard may take a share.
    general = [verdict.pop("general") for verdict in verdicts]
    assert verdicts[0] == verdicts[1]
    assert general[0]["rows"] == 70
    assert "short" in general[1]["unmeasured"]


@causal
def test_a_checkpoint_of_peft_is_scored_judged_and_learned_on(place):
    checkpoint = trained_elsewhere()
    stored = load_file(checkpoint / WEIGHTS)
    told = perdure("adopt", "lineage", checkpoint, "more", "--test", "colour-test.jsonl")
    assert told.status == 0, told.err
    assert "stage 3 adopted more; the scores:" in told.out
    assert "stage 3, more:" in told.out
    entry = Lineage("lineage").stages[-1]
    kept = load_file(Lineage("lineage").folder(entry) / WEIGHTS)
    assert all(torch.equal(kept[name], stored[name]) for name in stored)
    assert set(entry["scores"]) == {"colour", "animal", "more"}
    assert entry["task"]["train"]["rows"] == 0
    assert rerun(Lineage("lineage")).commands == (
        "perdure run again.yaml lineage=again",
        "# more: adopted; perdure adopt again CHECKPOINT more --test colour-test.jsonl",
    )
    assert "already adopted" in perdure("adopt", "lineage", checkpoint, "more").err
    again = ("adopt", "lineage", checkpoint, "more", "--test")
    assert "already adopted" in perdure(*again, "colour-test.jsonl").err
    refused(place, *again, "animal-test.jsonl", names=("with other test rows", "--to 2"))
    metric = ("colour-test.jsonl", "--metric", "rouge_l")
    refused(place, *again, *metric, names=("with another metric", "adopt again"))
    assert len(Lineage("lineage").stages) == 3
    assert perdure("show", "lineage").status == 0
    assert learn("lineage", "next", **ROWS)["parent"] == 3
    revert("lineage", 2)
    assert verify("lineage") == []
    assert perdure("report", "lineage").status == 0


@causal
def test_a_checkpoint_that_does_not_fit_is_refused(place):
    checkpoint = trained_elsewhere()
    file, weights = checkpoint / "adapter_config.json", load_file(checkpoint / WEIGHTS)
    config = json.loads(file.read_text())

    def bad(*words: str, folder: Path | str = checkpoint, **changes: object) -> None:
        file.write_text(json.dumps(config | changes))
        refused(place, "adopt", "lineage", folder, "more", names=words)

    bad("nowhere: no such folder", folder="nowhere")
    bad("base: no adapter_model.safetensors in it", "have an adapter", folder="base")
    bad("lora_alpha is 7, and 32 in the lineage", lora_alpha=7)
    bad("init_lora_weights is 'pissa'", init_lora_weights="pissa")
    bad("use_rslora is True", use_rslora=True)
    bad(
        "base 'far/away', which is not here",
        "with 'base', the base of lineage",
        base_model_name_or_path="far/away",
    )
    save_tiny("causal", Path("other-base"), seed=5)
    words = ("trained on another base, 'other-base'", "model.safetensors differs")
    bad(*words, base_model_name_or_path="other-base")
    shutil.copytree("base", "same-base")
    name = next(iter(weights))
    save_file({n: w for n, w in weights.items() if n != name}, checkpoint / WEIGHTS)
    bad(f"is of another shape: it has no {name}", base_model_name_or_path="same-base")
    save_file({**weights, name: weights[name][:, :3].contiguous()}, checkpoint / WEIGHTS)
    bad(f"is of another shape: {name} is 8 x 3, and 8 x 32 in the lineage's model")
    (checkpoint / WEIGHTS).write_bytes(b"no tensors")
    bad("does not load", "save it again")
    (checkpoint / WEIGHTS).unlink()
    bad("no adapter_model.safetensors in it")
    Path("unsettled").mkdir()
    save_file(weights, Path("unsettled") / WEIGHTS)
    bad("unsettled: no adapter_config.json in it", "save_pretrained", folder="unsettled")


@causal
def test_whole_weights(whole_place):
    stage = Lineage("lineage").folder(Lineage("lineage").stages[-1])
    model = AutoModelForCausalLM.from_pretrained(stage)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    model.save_pretrained("checkpoint", max_shard_size="30KB")
    assert len(list(Path("checkpoint").glob("*.safetensors"))) > 1
    entry = adopt("lineage", "checkpoint", "more", **ROWS)
    kept = load_file(Lineage("lineage").folder(entry) / "model.safetensors")
    wanted = model.state_dict()
    assert all(torch.equal(weights, wanted[name]) for name, weights in kept.items())
    assert verify("lineage") == []
    save_tiny("causal", Path("wide"))
    weights = load_file("wide/model.safetensors")
    name = "model.norm.weight"
    save_file({**weights, name: weights[name][:5].contiguous()}, "wide/model.safetensors")
    words = (f"is of another shape: {name} is 5, and 32",)
    refused(whole_place, "adopt", "lineage", "wide", "other", names=words)
    Path("wide/adapter_config.json").write_text("{}")
    refused(whole_place, "adopt", "lineage", "wide", "other", names=("is an adapter, but",))


@pytest.mark.parametrize("kind", ["encoder"])
def test_an_encoder_cannot_adopt(place):
    checkpoint = Lineage("lineage").folder(Lineage("lineage").stages[-1])
    refused(place, "adopt", "lineage", checkpoint, "more", names=("encoder", "that generate"))
