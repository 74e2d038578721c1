"""A stage is written whole or not at all; a stopped run ends in the bytes of an unstopped one."""

import json

import pytest

from perdure import api
from perdure.config import load_config
from perdure.lineage import ledger
from perdure.lineage import lineage as lineage_module
from perdure.lineage.files import hash_folder
from perdure.lineage.lineage import Lineage
from perdure.train import stage
from perdure.verbs import run as verb
from tiny import KINDS, save_tiny, shown_on_causal, tiny_rows
from train.engine import Stop, Stopped


BASES = (*KINDS, "whole")


@pytest.fixture(scope="module", params=BASES)
def setting(request, tmp_path_factory):
    """A base and three tasks on disk; the settings of a run in `lineage`.

    `whole` is a causal base whose weights are all trained.
    """
    whole = request.param == "whole"
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny("causal" if whole else request.param, folder / "base")
    tasks = []
    for name in ("colour", "animal", "count"):
        for split, n, seed in (("train", 48, 0), ("test", 12, 1)):
            lines = [json.dumps(row) + "\n" for row in tiny_rows(name, n, seed)]
            (folder / f"{name}-{split}.jsonl").write_text("".join(lines))
        files = {split: str(folder / f"{name}-{split}.jsonl") for split in ("train", "test")}
        tasks.append({"name": name, **files})
    return {
        "base": str(folder / "base"),
        "tasks": tasks,
        "method": ["replay", {"recurrent_kif": {"inner_steps": 4}}],
        "memory": {"ratio": 0.1},
        "training": {"learning_rate": 1e-2, "num_train_epochs": 1},
        "adapter": None if whole else {},
        "max_length": 32,
        "max_completion_length": 4,
        "checkpoint_every": 2,
        "threads": 1,
    }


def run(setting, path, callbacks=()):
    return api.run(load_config({**setting, "lineage": str(path)}), callbacks=callbacks)


def contents(path):
    """Everything that is in a hash: all but the timings and the lock."""
    free = ("timings.json", "lock")
    return {name: h for name, h in hash_folder(path).items() if name not in free}


@pytest.fixture(scope="module")
def whole(setting, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "lineage"
    run(setting, path)
    return path


def die_at(call, original):
    """`original`, but its call number `call` (from 1) is the end."""
    calls = []

    def dying(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise Stopped
        return original(*args, **kwargs)

    return dying


def dies_inside_a_stage(monkeypatch, setting, path):
    run(setting, path, [Stop(5, task=2)])


def dies_before_the_first_checkpoint(monkeypatch, setting, path):
    run(setting, path, [Stop(1, task=2)])


def dies_while_scoring(monkeypatch, setting, path):
    monkeypatch.setattr(stage, "save_weights", die_at(2, stage.save_weights))
    run(setting, path)


def dies_before_the_rename(monkeypatch, setting, path):
    monkeypatch.setattr(lineage_module, "hash_folder", die_at(2, hash_folder))
    run(setting, path)


def dies_before_the_ledger_line(monkeypatch, setting, path):
    # the first two calls are those of stage 0 and of stage 1
    monkeypatch.setattr(lineage_module, "append", die_at(3, lineage_module.append))
    run(setting, path)


def dies_after_a_stage(monkeypatch, setting, path):
    monkeypatch.setattr(verb, "advance", die_at(2, verb.advance))
    run(setting, path)


PLACES = [
    dies_inside_a_stage,
    dies_before_the_first_checkpoint,
    dies_while_scoring,
    dies_before_the_rename,
    dies_before_the_ledger_line,
    dies_after_a_stage,
]
EVERYWHERE = (dies_inside_a_stage, dies_before_the_ledger_line)  # the rest knows of no model


def marks(base, place):
    """Slow is what shows little more than another place or base; old versions see one base."""
    if base != "causal" and (base, place) != ("whole", dies_inside_a_stage):
        return pytest.mark.slow
    return () if base == "causal" and place in EVERYWHERE else pytest.mark.own


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        pytest.param(base, place, marks=marks(base, place), id=f"{base}-{place.__name__}")
        for base in BASES
        for place in PLACES
    ],
    indirect=["setting"],
)
def test_a_run_killed_once_ends_in_the_same_bytes(place, setting, whole, tmp_path, monkeypatch):
    # the same depth below the data: the ledger holds paths relative to the lineage
    path = whole.parent.with_name(f"{tmp_path.name}-{whole.parent.name}") / "lineage"
    path.parent.mkdir()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        place(patch, setting, path)
    assert [entry["stage"] for entry in Lineage(path).stages] == [1]
    lineage = run(setting, path)
    assert [entry["stage"] for entry in lineage.stages] == [1, 2, 3]
    assert contents(path) == contents(whole)
    assert not (path / ".work").exists()


@shown_on_causal("setting", BASES)
def test_two_runs_of_the_same_settings_are_the_same_bytes(setting, whole):
    path = whole.parent.with_name(f"again-{whole.parent.name}") / "lineage"
    path.parent.mkdir()
    run(setting, path)
    assert contents(path) == contents(whole)


@pytest.mark.own
def test_a_finished_run_has_nothing_to_do(setting, whole):
    before = hash_folder(whole)
    run(setting, whole)
    assert hash_folder(whole) == before


@shown_on_causal("setting", BASES)
def test_the_kill_inside_a_stage_really_resumes_inside_it(setting, tmp_path):
    path, lines = tmp_path / "lineage", []
    with pytest.raises(Stopped):
        run(setting, path, [Stop(5, task=2)])
    api.run(load_config({**setting, "lineage": str(path)}), say=lines.append)
    assert "animal: going on from step 4" in lines


@pytest.mark.own
@pytest.mark.parametrize("setting", ["causal"], indirect=True)
def test_a_run_killed_right_after_its_last_commit_leaves_no_checkpoints(
    setting, whole, tmp_path, monkeypatch
):
    """The line is in newest.json, and the ledger has it without its newline."""
    path = whole.parent.with_name(f"{tmp_path.name}-{whole.parent.name}") / "lineage"
    path.parent.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "finish_append", die_at(4, ledger.finish_append))  # init, 3 stages
        with pytest.raises(Stopped):
            run(setting, path)
    assert list(path.glob(".work/0003-count-*"))
    assert not (path / "ledger.jsonl").read_bytes().endswith(b"\n")
    assert [entry["stage"] for entry in Lineage(path).stages] == [1, 2, 3]
    run(setting, path)
    assert contents(path) == contents(whole)
    assert not (path / ".work").exists()


@pytest.mark.own
@pytest.mark.parametrize("setting", ["causal"], indirect=True)
def test_checkpoints_in_another_folder_are_found_again_and_removed(
    setting, whole, tmp_path, monkeypatch
):
    path = whole.parent.with_name(f"scratch-{whole.parent.name}") / "lineage"
    path.parent.mkdir()
    monkeypatch.setenv("PERDURE_WORK", str(tmp_path))
    with pytest.raises(Stopped):
        run(setting, path, [Stop(5, task=2)])
    assert not list(path.glob(".work/*/checkpoint-*"))
    assert list(tmp_path.glob("lineage-*/0002-animal-*/checkpoint-4"))
    other, lines = tmp_path / "lineage-of-somebody", []
    other.mkdir()
    api.run(load_config({**setting, "lineage": str(path)}), say=lines.append)
    assert "animal: going on from step 4" in lines
    assert contents(path) == contents(whole)
    assert list(tmp_path.iterdir()) == [other]


@pytest.mark.own
@pytest.mark.parametrize("setting", ["causal"], indirect=True)
@pytest.mark.parametrize("damaged", [["4"], ["4", "2"]])
def test_a_damaged_checkpoint_is_said_and_not_used(setting, whole, damaged, tmp_path):
    path = whole.parent.with_name(f"{tmp_path.name}-{whole.parent.name}") / "lineage"
    path.parent.mkdir()
    with pytest.raises(Stopped):
        run(setting, path, [Stop(5, task=2)])
    for step in damaged:
        (optimizer,) = path.glob(f".work/*/checkpoint-{step}/optimizer.pt")
        content = bytearray(optimizer.read_bytes())
        content[len(content) // 2] ^= 1
        optimizer.write_bytes(content)
    lines: list[str] = []
    api.run(load_config({**setting, "lineage": str(path)}), say=lines.append)
    about = ("checkpoint of", "going on", "beginning again")
    assert [line for line in lines if any(words in line for words in about)] == [
        *(
            f"warning: animal: checkpoint of step {step} is damaged (optimizer.pt was changed) and "
            "not used"
            for step in damaged
        ),
        "animal: going on from step 2" if damaged == ["4"] else "animal: beginning again",
    ]
    assert contents(path) == contents(whole)
