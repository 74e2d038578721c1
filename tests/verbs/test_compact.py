"""`compact` drops weights that can be learned again, and `repair --stage` learns them again."""

import json
import shutil
from pathlib import Path

import pytest

from command import perdure, refused, write_rows
from perdure import PerdureError
from perdure.api import adopt, compact, log, repair, revert, show, verify
from perdure.api import learn as learn_rows
from perdure.lineage.files import hash_folder
from perdure.lineage.history import History
from perdure.lineage.lineage import Lineage
from perdure.verbs import again
from perdure.verbs.compact import _why_not_from_its_sources
from place import learn, learned, setting_for, task
from tiny import tiny_rows


pytestmark = pytest.mark.own

FIRST, THIRD = Path("lineage/stages/0001-colour"), Path("lineage/stages/0003-count")
WEIGHTS = {"adapter_model.safetensors", "method.safetensors"}


@pytest.fixture(scope="module")
def three_stages(template, tmp_path_factory):
    folder = tmp_path_factory.mktemp("three") / "place"
    shutil.copytree(template("causal", False), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for split, count in (("train", 16), ("test", 6)):
            write_rows(folder / f"count-{split}.jsonl", tiny_rows("count", count))
        learn("lineage", task("count"))
    return folder


@pytest.fixture
def here(three_stages, tmp_path, monkeypatch):
    shutil.copytree(three_stages, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def stages() -> dict[str, str]:
    return hash_folder(Path("lineage/stages"))


def test_a_stage_is_dropped_and_comes_back_with_its_bytes(here):
    before = stages()
    size = sum((FIRST / name).stat().st_size for name in WEIGHTS)
    planned = compact("lineage", dry_run=True)
    assert stages() == before
    assert len(log("lineage")) == 4
    result = compact("lineage")
    assert {**planned, "dry_run": False} == result
    assert result["bytes"] == size
    assert [(s["stage"], s["reason"]) for s in result["dropped"]] == [(1, None)]
    kept = {s["stage"]: s["reason"] for s in result["kept"]}
    assert "revert" in kept[2]
    assert "newest" in kept[3]
    assert before.keys() - stages().keys() == {f"0001-colour/{name}" for name in WEIGHTS}
    assert Lineage("lineage").ledger[-1]["dropped"] == ["stages/0001-colour"]
    assert log("lineage")[-1]["dropped"] == [1]
    assert verify("lineage") == []
    assert repair("lineage")["restored"] == []
    assert compact("lineage")["dropped"] == []
    assert len(log("lineage")) == 5
    result = perdure("repair", "lineage", "--stage", 1)
    assert (result.status, result.out.count("learned again, to the same bytes")) == (0, 1)
    assert stages() == before
    assert not Path("lineage/.work").exists()
    assert "stage 1 has its weights again" in perdure("log", "lineage").out
    assert perdure("try", "lineage", "question the alpha", "--stage", 1).status == 0
    assert compact("lineage")["bytes"] == size


def test_what_every_verb_says_of_a_dropped_stage(here):
    before = stages()
    result = perdure("compact", "lineage", 1, 2)
    assert result.status == 0
    assert "can go back to stage 2: `perdure repair lineage --stage 2`" in result.err
    line = "the weights of stage 1 were dropped by `perdure compact`; `perdure repair lineage"
    for arguments in (
        ("try", "lineage", "question the alpha", "--stage", 1),
        ("evaluate", "lineage", "--stage", 1),
        ("check", "lineage", "--stage", 1),
        ("export", "lineage", "out", "--stage", 1),
        ("push", "lineage", "me/it", "--stage", 1),
        ("probe", "lineage", "colour-test.jsonl", "--stages", "1"),
        ("revert", "lineage", "--to", 1),
    ):
        result = perdure(*arguments)
        assert (result.status, result.err.count(line)) == (2, 1), arguments
    assert "dropped by `perdure compact`" in perdure("show", "lineage", "--stage", 1).out
    assert not show("lineage", 1)["weights_kept"]
    assert "the weights of stage 1, 2 were dropped" in perdure("verify", "lineage").out
    assert "dropped the weights of stage 1, 2" in perdure("log", "lineage").out
    assert perdure("report", "lineage").status == 0
    (THIRD / "adapter_model.safetensors").write_bytes(b"")
    assert len(repair("lineage")["restored"]) == 3  # stage 3 began with stage 2, which with stage 1
    assert stages() == before
    revert("lineage", 2)
    assert verify("lineage") == []


def test_weights_that_were_put_back_from_a_copy_stay(here):
    before = stages()
    for name in WEIGHTS:
        shutil.copy(FIRST / name, name)
    compact("lineage")
    for name in WEIGHTS:
        shutil.copy(name, FIRST / name)
    assert "were there" in repair("lineage", stage=1)["restored"][0]
    assert stages() == before
    assert show("lineage", 1)["weights_kept"]


def change_rows(patch):
    rows = Path("colour-train.jsonl").read_text()
    Path("colour-train.jsonl").write_text(rows.partition("\n")[2])


def change_base(patch):
    Path("base/config.json").write_text(Path("base/config.json").read_text() + "\n")


def change_versions(patch):
    patch.setattr(again, "version", lambda name: "0.0.1")


def change_machine(patch):
    patch.setattr(again.platform, "node", lambda: "elsewhere")


def forget_machine(patch):
    Path("lineage/timings.json").unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_rows, "its train rows have changed"),
        (change_base, "base 'base' is not the one"),
        (change_versions, "torch .* is 0.0.1 now"),
        (change_machine, "it was learned on another machine"),
        (forget_machine, r"it was learned on another machine \(unknown\)"),
    ],
)
def test_what_cannot_be_learned_again_to_the_same_bytes_is_kept(here, monkeypatch, change, reason):
    before = stages()
    change(monkeypatch)
    result = compact("lineage")
    assert (result["dropped"], result["bytes"], stages()) == ([], 0, before)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(result["kept"][0]["reason"])


def test_a_stage_follows_one_that_is_damaged(here):
    Path("colour-train.jsonl").unlink()  # so stage 1 cannot be learned again
    (stage,) = compact("lineage", [2], dry_run=True)["dropped"]
    assert stage["reason"] is None
    (FIRST / "adapter_model.safetensors").write_bytes(b"")
    (stage,) = compact("lineage", [2], dry_run=True)["dropped"]
    assert stage["reason"] == "it began with stage 1, which is damaged"
    (FIRST / "memory.jsonl").unlink()  # stage 2 has rehearsed it
    assert "memory.jsonl: missing" in compact("lineage", [2], dry_run=True)["dropped"][0]["reason"]


def test_stages_that_are_named_are_dropped_for_good(here):
    change_rows(None)
    result = perdure("compact", "lineage", 1, 2)
    assert "stage 1 (colour)" in result.out
    assert "dropped, for good" in result.out
    errors = " ".join(result.err.split())
    assert "stage 1 is gone for good, unless this is put right: its train rows" in errors
    assert "stage 2 is gone for good, unless this is put right: it can only be learned" in errors
    assert verify("lineage") == []
    result = repair("lineage", stage=2)
    assert "its train rows have changed" in result["lost"][0]
    assert "stage 1, from which it was learned, is lost" in result["lost"][1]
    assert result["stage"] == 3


def test_a_folder_in_the_place_of_weights_stays(here):
    weights = FIRST / "adapter_model.safetensors"
    weights.unlink()
    (weights / "own").mkdir(parents=True)
    assert [stage["stage"] for stage in compact("lineage")["dropped"]] == [1]
    assert (weights / "own").is_dir()
    assert learn("lineage", task("colour"))["stage"] == 4


def test_bad_input(here):
    for arguments, words in (
        (("compact", "lineage", 7), "no stage 7"),
        (("compact", "lineage", 0), "stage 0 is the base"),
        (("compact", "lineage", 3), "stage 3 is the newest"),
        (("compact", "lineage", "first"), "valid integer"),
        (("compact", "elsewhere"), "not a lineage"),
        (("repair", "lineage", "--stage", 7), "no stage 7"),
    ):
        refused(Path.cwd(), *arguments, names=(words,))


def test_as_json(here):
    result = perdure("compact", "lineage", "--dry-run", "--json").json
    assert result["dropped"][0]["task"] == "colour"
    assert perdure("verify", "lineage", "--json").json["dropped"] == []


def test_a_metric_that_only_the_ledger_names_is_not_imported(here, monkeypatch):
    monkeypatch.setattr(again, "describe", None)
    with pytest.raises(PerdureError, match="code that only the ledger names"):
        again._task(Lineage("lineage"), {"name": "a", "metric": "planted:run"}, None)


def test_a_stopped_task_keeps_its_checkpoints():
    history = History()
    history.ledger = [{"verb": "init"}, {"verb": "learn"}, {"verb": "compact"}, {"verb": "repair"}]
    assert history.newest_change == {"verb": "learn"}


def test_a_ledger_that_restores_another_folder_is_refused(here):
    Lineage("lineage").append(
        {"stage": 3, "verb": "repair", "parent": 3, "restored": ["stages/0001-colour"]}
    )
    lines = Path("lineage/ledger.jsonl").read_text().splitlines()
    line = json.dumps({**json.loads(lines[-1]), "restored": ["../outside"]}, sort_keys=True)
    Path("lineage/newest.json").unlink()
    Path("lineage/ledger.jsonl").write_text("\n".join([*lines[:-1], line]) + "\n")
    with pytest.raises(PerdureError, match=r"restored\.0 must be a stage's folder"):
        Lineage("lineage")


def test_a_state_with_which_a_later_stage_begins_stays_or_is_learned_again(tmp_path, monkeypatch):
    """The state of `ewc` is that of the newest stage that was learned with it."""
    monkeypatch.chdir(tmp_path)
    setting = setting_for("causal", tmp_path, n=8)
    setting |= {"tasks": setting["tasks"][:1], "scoring": {"forward": False}, "guard": None}
    learned(setting, "lineage", method="ewc")
    for name in ("b", "c"):
        adopt("lineage", FIRST, name)
    (kept,) = [stage for stage in compact("lineage")["kept"] if stage["stage"] == 1]
    assert kept["reason"] == "the next task begins with its state of ewc"
    (note,) = compact("lineage", [1], dry_run=True)["notes"]
    assert note == "the next task begins without the state of ewc, which stage 1 has"
    for name in ("d", "e", "f"):
        learn_rows("lineage", name, train="colour-train.jsonl")
    before = stages()
    assert [stage["stage"] for stage in compact("lineage")["dropped"]] == [1, 4]
    result = repair("lineage", stage=4)
    assert (len(result["restored"]), result["lost"]) == (2, [])
    assert stages() == before
    Path("colour-train.jsonl").unlink()
    colour = compact("lineage", [1, 4], dry_run=True)
    assert "stage 4 is gone for good" in colour["notes"][1]


def test_a_stage_is_lost_with_the_state_that_it_began_with():
    def line(stage: int, verb: str = "learn", **more: object) -> dict:
        files = {"adapter_model.safetensors": "0", "method.safetensors": "1"}
        made = {"parent": stage - 1, "folder": f"stages/{stage}", "files": files}
        method = "ewc" if verb == "learn" else "adopted"
        return {"stage": stage, "verb": verb, **made, "mode": "sequential", "method": method} | more

    lines = [{"stage": 0, "verb": "init", "parent": None}, line(1), line(2, "adopt"), line(3)]
    history = History()
    history.ledger = lines
    sources = again.sources_of(history, lines[3])
    assert [source.words for source in sources] == ["stage 2", "the state of stage 1"]
    dropped = {"stage": 2, "verb": "compact", "parent": 2, "dropped": ["stages/1"]}
    history.ledger = [*lines[:3], dropped, line(3)]  # then it began without the state
    assert [source.number for source in again.sources_of(history, line(3))] == [2]
    history.ledger = [*lines, {**dropped, "stage": 3}]
    assert sources[1].is_dropped(history)
    why = {0: None, 1: "its train rows have changed", 2: "it was adopted"}
    history.is_intact = lambda entry, name: True
    assert _why_not_from_its_sources(history, lines[3], why) == (
        "it began with the state of stage 1, which was dropped and cannot be learned again "
        "(its train rows have changed)"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal"])
def test_whole_weights_that_later_stages_dropped_come_back(whole_place):
    first = Path("lineage/stages/0001-colour")
    before = hash_folder(first)
    write_rows(Path("count-train.jsonl"), tiny_rows("count", 8))
    write_rows(Path("count-test.jsonl"), tiny_rows("count", 8))
    learn("lineage", task("count"))
    assert not (first / "model.safetensors").exists()
    assert compact("lineage")["dropped"][0]["stage"] == 1  # what is left: the method's state
    repair("lineage", stage=1)
    assert hash_folder(first) == before
    revert("lineage", 1)
