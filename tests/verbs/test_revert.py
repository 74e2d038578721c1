"""`revert`: back to an earlier stage, and on from there as if the later ones had never been."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command import perdure, tree
from perdure import PerdureError
from perdure.api import evaluate, revert, verify
from perdure.config import load_config
from perdure.data.rows import read_rows
from perdure.lineage.lineage import Lineage
from perdure.models.layout import ADAPTER_WEIGHTS
from perdure.verbs import advance
from place import init, learn, task


pytestmark = pytest.mark.own


def test_back_by_one_to_any_and_forward_again(place):
    files = tree(Path("lineage/stages"))
    assert revert("lineage")["stage"] == 1
    assert [e["stage"] for e in Lineage("lineage").stages] == [1]
    assert revert("lineage", 0)["parent"] == 1
    assert Lineage("lineage").stages == []
    entry = revert("lineage", 2)
    assert (entry["verb"], entry["stage"], entry["parent"]) == ("revert", 2, 0)
    lineage = Lineage("lineage")
    assert [e["stage"] for e in lineage.stages] == [1, 2]
    assert len(lineage.ledger) == 6
    assert tree(Path("lineage/stages")) == files
    assert verify("lineage") == []


def test_scores_and_matrix_are_of_the_active_stages_only(place):
    before = Lineage("lineage").matrix()
    revert("lineage", 1)
    lineage = Lineage("lineage")
    assert lineage.matrix().tasks == ("colour",)
    assert lineage.matrix().rows == tuple((row[0],) for row in before.rows[:2])
    assert list(evaluate("lineage")) == ["colour"]
    assert evaluate("lineage", 2)["colour"]["score"] == before.rows[2][0]


def test_reverted_rows_are_no_longer_rehearsed(place, monkeypatch):
    plans, original = [], advance.learn_stage

    def learn_stage(base, plan, *rest):
        plans.append(plan)
        return original(base, plan, *rest)

    monkeypatch.setattr(advance, "learn_stage", learn_stage)
    learn("lineage", task("animal", {"learning_rate": 1e-3}))
    revert("lineage", 1)
    learn("lineage", task("animal", {"learning_rate": 1e-3}))
    assert [set(plan.memory) for plan in plans] == [{"colour", "animal"}, {"colour"}]
    memory_rows = read_rows(Path("lineage/stages/0001-colour/memory.jsonl"))
    assert plans[1].memory["colour"] == memory_rows
    assert [plan.previous.name for plan in plans] == ["0002-animal", "0001-colour"]
    assert [plan.task for plan in plans] == ["animal@3", "animal"]
    assert [plan.stage for plan in plans] == [3, 4]


@pytest.mark.parametrize(
    ("kind", "to"), [("causal", 1), ("causal", 0), ("seq2seq", 1), ("encoder", 0)]
)
def test_the_next_task_goes_on_as_if_the_reverted_stage_had_never_been(place, to, monkeypatch):
    """The same weights bitwise as where it never was, given the same number, and so seed."""
    shutil.copytree("lineage", "never")
    ledger = Path("never/ledger.jsonl")
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[: to + 1]))
    ledger.with_name("newest.json").unlink()
    revert("lineage", to)
    again = learn("lineage", task("animal"))
    assert (again["stage"], again["parent"], again["task"]["id"]) == (3, to, "animal")
    # The same number is taken without the lines in between, which no ledger of a verb does.
    monkeypatch.setattr("perdure.lineage.lineage.check_ledger", lambda *arguments: None)
    with monkeypatch.context() as patch:
        patch.setattr(Lineage, "next_stage", 3)
        never = learn("never", task("animal"))
    files, expected = again["files"], never["files"]
    assert {n: h for n, h in files.items() if n != "README.md"} == {
        n: h for n, h in expected.items() if n != "README.md"
    }
    lineage = Lineage("lineage")
    assert [e["stage"] for e in lineage.stages] == [*range(1, to + 1), 3]
    assert lineage.matrix() == Lineage("never").matrix()
    assert set(again["scores"]) == set(["colour", "animal"] if to else ["animal"])


@pytest.mark.parametrize("kind", ["seq2seq", "encoder"])
def test_whole_weights_go_on_from_the_stage_they_were_reverted_to(whole_place, monkeypatch):
    shutil.copytree("lineage", "never")
    ledger = Path("never/ledger.jsonl")
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:2]))
    ledger.with_name("newest.json").unlink()
    revert("lineage", 1)
    again = learn("lineage", task("animal"))
    # The same number is taken without the lines in between, which no ledger of a verb does.
    monkeypatch.setattr("perdure.lineage.lineage.check_ledger", lambda *arguments: None)
    with monkeypatch.context() as patch:
        patch.setattr(Lineage, "next_stage", 3)
        never = learn("never", task("animal"))
    assert again["files"]["model.safetensors"] == never["files"]["model.safetensors"]


@pytest.mark.parametrize("kind", ["causal"])
def test_whole_weights_that_are_gone_cannot_be_reverted_to(whole_place):
    for name in ("colour", "animal"):
        learn("lineage", task(name))
    before = tree(whole_place)
    with pytest.raises(
        PerdureError, match=r"stage 1 were removed.*available: stage 3, 4, and the base"
    ):
        revert("lineage", 1)
    assert tree(whole_place) == before
    revert("lineage", 3)
    assert verify("lineage") == []
    revert("lineage", 0)
    assert learn("lineage", task("colour"))["stage"] == 5
    assert Lineage("lineage").stages[-1]["dropped"] == [
        "stages/0003-colour",
        "stages/0004-animal",
    ]


@pytest.mark.parametrize("kind", ["causal"])
def test_what_is_refused(place):
    with pytest.raises(PerdureError, match="no stage 5; valid: 0, 1, 2"):
        revert("lineage", 5)
    with pytest.raises(PerdureError, match="no stage -1"):
        revert("lineage", -1)
    with pytest.raises(PerdureError, match="stage 2 is already the newest"):
        revert("lineage", 2)
    revert("lineage", 0)
    with pytest.raises(PerdureError, match=r"stage 0 is the newest.*--to 2"):
        revert("lineage")
    init("new", load_config({"base": "base"}))
    with pytest.raises(PerdureError, match="nothing has been learned yet"):
        revert("new")
    with pytest.raises(PerdureError, match="stage 0 is already the newest"):
        revert("new", 0)


@pytest.mark.parametrize("kind", ["causal"])
def test_a_stage_that_is_damaged_or_gone_is_not_gone_back_to(place):
    revert("lineage", 1)
    before, stage = Path("lineage/ledger.jsonl").read_bytes(), Path("lineage/stages/0002-animal")
    for name in (ADAPTER_WEIGHTS, "scores.json"):
        content = (stage / name).read_bytes()
        (stage / name).write_bytes(content[1:])
        refused = perdure("revert", "lineage", "--to", 2)
        assert (refused.status, refused.err.count("perdure repair lineage")) == (2, 1)
        (stage / name).write_bytes(content)
    stage.rename("elsewhere")
    with pytest.raises(PerdureError, match=r"missing; `perdure repair lineage`"):
        revert("lineage", 2)
    assert Path("lineage/ledger.jsonl").read_bytes() == before


@pytest.mark.parametrize("kind", ["causal"])
def test_on_the_command_line(place):
    result = perdure("revert", "lineage", "--to", 1)
    assert result.status == 0, result.err
    assert "the newest stage is now 1, it was 2" in result.out
    assert "perdure revert lineage --to 2" in result.out
    log = perdure("log", "lineage", "--json").json
    assert [line["verb"] for line in log] == ["init", "learn", "learn", "revert"]
    assert [line["active"] for line in log] == [True, True, False, True]
    text = perdure("log", "lineage").out
    assert "(2)" in text
    entry = perdure("revert", "lineage", "--to", 2, "--json").json
    assert (entry["stage"], entry["parent"]) == (2, 1)
    cells = perdure("evaluate", "lineage", "--json").json
    assert list(cells) == ["colour", "animal"]


@pytest.mark.parametrize("kind", ["causal"])
def test_the_first_task_after_a_revert_to_the_base_is_a_first_task(place):
    """HFT freezes from the second task on: of a frozen pair of LoRA B stays zero, as it begins."""
    init("halves", load_config({"base": "base", "method": "hft", "threads": 1}))
    learn("halves", task("colour"))
    revert("halves", 0)
    learn("halves", task("animal"))
    lineage = Lineage("halves")
    stage = load_file(lineage.folder(lineage.stages[-1]) / ADAPTER_WEIGHTS)
    assert all(tensor.any() for name, tensor in stage.items() if "lora_B" in name)
    learn("halves", task("colour"))
    lineage = Lineage("halves")
    second = load_file(lineage.folder(lineage.stages[-1]) / ADAPTER_WEIGHTS)
    assert sum(torch.equal(second[name], stage[name]) for name in stage) == len(stage) // 2
