"""What a method has stored outlives stages that were made without it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from perdure import PerdureError
from perdure.api import adopt, compact, configure, learn
from perdure.lineage.lineage import Lineage
from perdure.methods.l2 import L2
from perdure.methods.lwf import LwF
from perdure.methods.wise_ft import WiSEFT
from perdure.train.parameters import trained
from place import learned, setting_for


pytestmark = pytest.mark.own
ROWS = {"train": "colour-train.jsonl", "test": "colour-test.jsonl"}
WEIGHTS = "adapter_model.safetensors"


def lineage(place: Path, monkeypatch, kind: str = "causal", **settings) -> Lineage:
    """A lineage of two tasks in the folder where the test then stands."""
    monkeypatch.chdir(place)
    return learned(setting_for(kind, place, n=16), "lineage", **settings)


def state() -> dict[str, torch.Tensor]:
    """What the methods have stored with the newest stage."""
    newest = Lineage("lineage")
    return load_file(newest.folder(newest.stages[-1]) / "method.safetensors")


def adapter(stage: int = -1) -> dict[str, torch.Tensor]:
    newest = Lineage("lineage")
    file = newest.file(newest.stages[stage], WEIGHTS)
    assert file is not None
    return load_file(file)


def fisher() -> float:
    """The sum of the precision: its mean is 1 for each task that was added up."""
    return sum(float(t.double().sum()) for name, t in state().items() if name.startswith("ewc.p."))


def adopt_newest() -> None:
    """Adopt the newest stage's own weights, as those of another task."""
    newest = Lineage("lineage")
    adopt("lineage", newest.folder(newest.stages[-1]), "dpo", test="colour-test.jsonl")


def learn_without() -> None:
    configure("lineage", method="sequential")
    learn("lineage", "between", **ROWS)
    configure("lineage", method="ewc")


@pytest.mark.parametrize("between", [adopt_newest, learn_without])
def test_the_precision_of_earlier_tasks_is_still_there(between, tmp_path, monkeypatch):
    lineage(tmp_path, monkeypatch, method="ewc")
    two_tasks = fisher()
    between()
    assert not any(name.startswith("ewc.") for name in state())
    learn("lineage", "more", **ROWS)
    assert fisher() == pytest.approx(1.5 * two_tasks, rel=1e-4)


def test_a_state_that_was_deleted_is_told(tmp_path, monkeypatch):
    lineage(tmp_path, monkeypatch, method="ewc")
    learn_without()
    compact("lineage", [2])
    lines: list[str] = []
    learn("lineage", "more", **ROWS, say=lines.append)
    (line,) = [line for line in lines if "ewc" in line]
    assert line.startswith("warning: ewc: its state of stage 2 was deleted by `perdure compact`")


@pytest.mark.parametrize("method", ["olora", "inflora"])
def test_the_adapters_of_old_tasks_stay_frozen_after_an_adopted_one(method, tmp_path, monkeypatch):
    lineage(tmp_path, monkeypatch, method=method, adapter={"r": 4})
    adopt_newest()
    learn("lineage", "more", **ROWS)
    before, after = adapter(-2), adapter()
    for name in before:
        if "lora_A" in name:
            assert (len(before[name]), len(after[name])) == (8, 12)
            assert torch.equal(after[name][:8], before[name])


@pytest.mark.parametrize("method", ["olora", "inflora"])
def test_an_adapter_that_another_method_trained_is_an_old_one(method, tmp_path, monkeypatch):
    lineage(tmp_path, monkeypatch, method="sequential", adapter={"r": 4})
    configure("lineage", method=method)
    learn("lineage", "more", **ROWS)
    before, after = adapter(-2), adapter()
    for name in before:
        if "lora_A" in name:
            assert (len(before[name]), len(after[name])) == (4, 8)
            assert torch.equal(after[name][:4], before[name])


def watched(monkeypatch, method: type, look: Callable) -> list:
    """What `look` sees of the methods of this class right after they began a task, from now on."""
    seen = []
    begin = method.begin_task  # type: ignore[attr-defined]

    def begin_task(self, model, context):
        model = begin(self, model, context)
        seen.append(look(self, model))
        return model

    monkeypatch.setattr(method, "begin_task", begin_task)
    return seen


def test_a_pull_towards_the_previous_stage_needs_no_state(tmp_path, monkeypatch):
    lineage(tmp_path, monkeypatch, method="sequential")
    configure("lineage", method="l2")

    def distance(pull: L2, model) -> float:
        weights = trained(model)
        assert weights.keys() == pull.parabola.moment.keys()
        return sum(
            float((w.detach() - pull.parabola.moment[n]).abs().sum()) for n, w in weights.items()
        )

    seen = watched(monkeypatch, L2, distance)
    learn("lineage", "more", **ROWS)
    assert seen == [0.0]


def test_a_pull_towards_the_base_must_be_there_from_the_start(tmp_path, monkeypatch):
    lineage(tmp_path, monkeypatch, method="sequential")
    configure("lineage", method={"l2": {"towards": "base"}})
    with pytest.raises(PerdureError, match="l2: towards base needs the weights with which"):
        learn("lineage", "more", **ROWS)
    assert len(Lineage("lineage").stages) == 2


def test_slao_counts_the_tasks_that_others_learned(tmp_path, monkeypatch):
    lineage(tmp_path, monkeypatch, method="sequential", adapter={"r": 4})
    configure("lineage", method="slao")
    before = adapter()
    learn("lineage", "more", **ROWS)
    assert int(state()["slao.tasks"]) == 3
    tuned, after = state(), adapter()
    for name in before:
        if "lora_B" in name:  # merged with rate 1 / sqrt(3)
            (key,) = [k for k in tuned if k.startswith("slao.b.") and _layer(k) == _layer(name)]
            expected = before[name].lerp(tuned[key], 3**-0.5)
            assert torch.allclose(after[name], expected, atol=1e-6)


def _layer(name: str) -> str:
    """`layers.0.self_attn.q_proj` of the name of a LoRA factor."""
    return name.partition("layers.")[2].partition(".lora")[0]


@pytest.mark.parametrize(("method", "made"), [("lwf", LwF), ("wise_ft", WiSEFT)])
def test_the_labels_of_an_encoder_are_known_whichever_method_was_before(
    method, made, tmp_path, monkeypatch
):
    lineage(tmp_path, monkeypatch, "encoder", method="sequential")
    configure("lineage", method=method)
    seen = watched(monkeypatch, made, lambda method, model: (int(method.labels), len(model.labels)))
    Path("new.jsonl").write_text('{"prompt": "red drum", "completion": "one"}\n' * 8)
    learn("lineage", "more", "new.jsonl")
    assert seen == [(6, 7)]


def test_the_new_head_of_an_encoder_is_not_pulled_towards_its_draw(tmp_path, monkeypatch):
    seen = watched(monkeypatch, L2, lambda pull, model: dict(pull.parabola.moment))
    lineage(tmp_path, monkeypatch, "encoder", method={"l2": {"towards": "base"}})
    moments = seen[0]
    assert (len(moments["weight"]), len(moments["bias"])) == (0, 0)
    assert any(len(tensor) for tensor in moments.values())


def test_a_task_named_like_an_id_is_not_hidden_by_another_one(tmp_path, monkeypatch):
    """The third task is `colour` again, whose id would be `colour@3`."""
    monkeypatch.chdir(tmp_path)
    setting = setting_for("causal", tmp_path, n=16)
    setting["tasks"][1]["name"] = "colour@3"
    learned(setting, "lineage", method="sequential")
    learn("lineage", "colour", "animal-train.jsonl", test="animal-test.jsonl")
    names = [entry["task"]["id"] for entry in Lineage("lineage").stages]
    assert names == ["colour", "colour@3", "colour@3@3"]
    assert len(Lineage("lineage").matrix().tasks) == 3


def test_nothing_is_told_of_a_method_that_took_part_in_the_previous_stage(tmp_path, monkeypatch):
    lineage(tmp_path, monkeypatch, method=["replay", "ewc"])
    learn("lineage", "more", **ROWS)
    compact("lineage", [1, 2])
    lines: list[str] = []
    learn("lineage", "next", **ROWS, say=lines.append)
    assert not any("compact" in line for line in lines)
