"""`rebase`: the base lies elsewhere, and is the same one."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from command import perdure, tree
from perdure import PerdureError
from perdure.api import answer, evaluate, export, push, rebase, revert, run, verify
from perdure.config import load_config
from perdure.lineage import lineage as module
from perdure.lineage.lineage import Lineage
from place import learn, task
from train.engine import Stopped


pytestmark = pytest.mark.own


causal = pytest.mark.parametrize("kind", ["causal"])


def named(path: str = "lineage") -> str:
    return yaml.safe_load(Path(path, "lineage.yaml").read_text())["base"]["name"]


def test_a_base_that_moved_is_found_again(place):
    before = evaluate("lineage")
    Path("base").rename("moved")
    untouched = tree(place)
    for verb in (
        lambda: learn("lineage", task("colour")),
        lambda: evaluate("lineage"),
        lambda: answer("lineage", ["red"]),
        lambda: export("lineage", "out"),
        lambda: export("lineage", "out", adapter=True),
        lambda: push("lineage", "me/mine"),
    ):
        with pytest.raises(
            PerdureError, match=r"'base': no such folder.* `perdure rebase`"
        ) as error:
            verb()
        assert "\n" not in str(error.value)
    assert tree(place) == untouched
    entry = rebase("lineage", "moved")
    assert (entry["verb"], entry["stage"], entry["parent"]) == ("rebase", 2, 2)
    assert named() == "moved"
    assert verify("lineage") == []
    assert evaluate("lineage") == before
    assert learn("lineage", task("colour"))["stage"] == 3
    assert verify("lineage") == []
    assert [e["stage"] for e in Lineage("lineage").stages] == [1, 2, 3]


@causal
@pytest.mark.parametrize("lost", ["stage", "card"])
def test_a_stage_from_before_is_learned_again_to_its_bytes(place, lost):
    """Its card and its adapter's settings have the name that the base had then."""
    before = tree(place / "lineage" / "stages")
    Path("base").rename("moved")
    rebase("lineage", "moved")
    folder = Path("lineage/stages/0002-animal")
    shutil.rmtree(folder) if lost == "stage" else (folder / "README.md").unlink()
    result = perdure("repair", "lineage")
    assert result.status == 0, result.out + result.err
    assert tree(place / "lineage" / "stages") == before
    assert verify("lineage") == []


@causal
def test_other_weights_are_refused_by_the_name_of_their_files(place):
    shutil.copytree("base", "other")
    weights = Path("other/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    before = tree(place)
    with pytest.raises(
        PerdureError, match=r"other: not the base of lineage: model.safetensors dif"
    ):
        rebase("lineage", "other")
    Path("other/config.json").unlink()
    with pytest.raises(PerdureError, match=r"config.json, model.safetensors differ;"):
        rebase("lineage", "other")
    with pytest.raises(PerdureError, match="'nowhere/at/all': no such folder"):
        rebase("lineage", "nowhere/at/all")
    with pytest.raises(PerdureError, match="is already there"):
        rebase("lineage", "base")
    Path("other").joinpath("config.json").write_text("{}")
    shutil.rmtree("other")
    del before["other"], before["other/model.safetensors"]
    assert {k: v for k, v in before.items() if not k.startswith("other/")} == tree(place)


@causal
def test_files_beside_those_of_the_base_are_nothing_new(place):
    Path("base").rename("moved")
    Path("moved/notes.txt").write_text("of mine")
    rebase("lineage", "moved")
    assert "notes.txt" not in Lineage("lineage").pin["files"]
    with pytest.raises(PerdureError, match="is already there"):
        rebase("lineage", "moved")


@causal
def test_a_reverted_lineage_stays_reverted(place):
    revert("lineage", 1)
    shutil.copytree("base", "moved")
    rebase("lineage", "moved")
    assert [e["stage"] for e in Lineage("lineage").stages] == [1]
    revert("lineage", 2)
    assert [e["stage"] for e in Lineage("lineage").stages] == [1, 2]
    assert Lineage("lineage").pin["name"] == "moved"


@causal
@pytest.mark.parametrize("verb", ["rebase", "learn"])
def test_a_stop_before_perdure_yaml_is_mended_by_the_next_verb(place, verb, monkeypatch):
    shutil.copytree("base", "moved")

    def stopped(*arguments):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_settings", stopped)
        with pytest.raises(Stopped):
            rebase("lineage", "moved")
    assert named() == "base"
    assert Lineage("lineage").pin["name"] == Lineage("lineage").config.base == "moved"
    assert verify("lineage") == ["lineage/lineage.yaml: names another base than the ledger"]
    if verb == "learn":
        learn("lineage", task("animal"))  # which the newest stage has learned already
    else:
        rebase("lineage", "base")
    assert named() == ("moved" if verb == "learn" else "base")
    assert verify("lineage") == []


@causal
def test_a_run_goes_on_once_its_settings_name_the_new_place(place):
    Path("base").rename("moved")
    Path("moved/notes.txt").write_text("of mine")
    rebase("lineage", "moved")
    settings = Lineage("lineage").config.to_dict() | {"lineage": "lineage"}
    assert len(run(load_config(settings)).ledger) == 4
    shutil.copytree("moved", "again")
    with pytest.raises(PerdureError, match=r"another base, moved; .*perdure rebase"):
        run(load_config({**settings, "base": "again"}))


@causal
def test_on_the_command_line(place):
    shutil.copytree("base", "moved")
    result = perdure("rebase", "lineage", "moved")
    assert result.out == "lineage: now on base moved, whose files have the same sha256\n"
    shutil.copytree("base", "again")
    entry = perdure("rebase", "lineage", "again", "--json").json
    assert entry["base"]["name"] == "again"
    assert (
        entry["base"]["files"]
        == json.loads(Path("lineage/ledger.jsonl").read_text().splitlines()[0])["base"]["files"]
    )
    assert [line["verb"] for line in perdure("log", "lineage", "--json").json][-2:] == [
        "rebase"
    ] * 2
