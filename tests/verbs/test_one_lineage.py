"""What may change between two calls on one lineage, and what may not."""

import re
from pathlib import Path

import pytest
import yaml

from command import perdure
from perdure import PerdureError, load_config
from perdure.api import answer, evaluate, revert, run, verify
from perdure.lineage.files import locked
from perdure.lineage.lineage import Lineage
from place import learned, setting_for


pytestmark = pytest.mark.own


causal = pytest.mark.parametrize("kind", ["causal"], indirect=True)


def test_a_tracker_can_be_switched_on_later_and_a_learning_rate_cannot_be_changed(tmp_path):
    setting = setting_for("causal", tmp_path, n=16)
    learned(setting, tmp_path / "run")
    training = {**setting["training"], "report_to": "tensorboard", "logging_steps": 1}
    assert learned({**setting, "training": training}, tmp_path / "run").head == 2
    with pytest.raises(PerdureError, match=r"training.learning_rate 0.01, not 0.001"):
        learned({**setting, "training": {**training, "learning_rate": 1e-3}}, tmp_path / "run")


def test_a_finished_run_tells_of_changed_test_rows_and_of_the_task_that_was_edited(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    setting = setting_for("causal", tmp_path, n=16)
    settings = load_config({**setting, "lineage": "lineage"})
    run(settings)
    lines: list[str] = []
    run(settings, say=lines.append)
    assert not [line for line in lines if line.startswith("warning")]
    edited = [setting["tasks"][0], {**setting["tasks"][1], "metric": "rouge_l"}]
    with pytest.raises(PerdureError, match=r"\(tasks.animal.metric not set, not rouge_l\); tasks "):
        run(load_config({**setting, "tasks": edited, "lineage": "lineage"}))
    test = Path(setting["tasks"][1]["test"])
    test.write_text(test.read_text() * 2)
    run(settings, say=lines.append)
    (warning,) = [line for line in lines if line.startswith("warning: animal: stage 2 was scored")]
    assert "`perdure revert lineage --to 1` and run it again" in warning


def test_a_dry_run_of_what_is_learned_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setting = setting_for("causal", tmp_path, n=16)
    Path("run.yaml").write_text(yaml.safe_dump({**setting, "lineage": "lineage"}))
    assert perdure("run", "run.yaml").status == 0
    for command in (("run", "run.yaml"), ("learn", "lineage", "animal", "animal-train.jsonl")):
        dry = perdure(*command, "--dry-run")
        assert dry.status == 0
        assert dry.out.strip().startswith("every task is learned already")


@causal
def test_changed_settings_are_found(place):
    file = place / "lineage" / "lineage.yaml"
    settings = yaml.safe_load(file.read_text())
    assert verify("lineage") == []
    file.write_text(yaml.safe_dump({**settings, "max_completion_length": 5}))
    assert verify("lineage") == [
        "lineage/lineage.yaml: has other settings than the ledger (max_completion_length 4 -> 5)"
    ]


@causal
def test_after_going_back_to_the_base_there_is_nothing_to_score(place):
    revert("lineage", 0)
    with pytest.raises(PerdureError, match=r"every stage is reverted.*perdure revert lineage --to"):
        evaluate("lineage")


@causal
def test_a_prompt_that_is_cut_is_told(place):
    lines: list[str] = []
    answer("lineage", ["the cat " * 80], say=lines.append)
    assert lines == ["warning: prompts longer than max_length 64, which were cut in the middle: 1"]


@causal
def test_a_lineage_is_found_after_the_working_directory_has_changed(place, monkeypatch):
    lineage = Lineage("lineage")
    scores = lineage.matrix().rows
    (place / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert lineage.path == Path("../lineage")
    assert lineage.matrix().rows == scores
    monkeypatch.chdir(place)
    assert lineage.path == Path("lineage")


@causal
def test_no_thread_count_is_the_one_that_there_was(place):
    settings = Lineage("lineage").config.threads
    perdure("set", "lineage", "threads=null")
    assert Lineage("lineage").config.threads == settings
    assert perdure("show", "lineage").status == 0


@causal
def test_predictions_do_not_replace_rows_to_which_the_lineage_can_go_back(place):
    revert("lineage", 1)
    rows = Path("animal-train.jsonl").read_bytes()
    with pytest.raises(PerdureError, match="has the train rows of animal"):
        evaluate("lineage", predictions="animal-train.jsonl")
    assert Path("animal-train.jsonl").read_bytes() == rows
    revert("lineage", 2)
    Path("general.jsonl").write_bytes(rows)
    assert perdure("set", "lineage", "method=replay", "general.file=general.jsonl").status == 0
    with pytest.raises(PerdureError, match=r"has the rows of general\.file"):
        evaluate("lineage", predictions="general.jsonl")


def test_every_stage_of_per_task_keeps_its_whole_weights(tmp_path):
    setting = setting_for("causal", tmp_path, n=8)
    third = {**setting["tasks"][0], "name": "third"}
    tasks = [*setting["tasks"], third]
    whole = {"mode": "per_task", "adapter": None, "memory": {"ratio": 0}}
    lineage = learned({**setting, "tasks": tasks}, tmp_path / "run", **whole)
    for entry in lineage.stages:
        assert (lineage.folder(entry) / "model.safetensors").exists()
    assert len(evaluate(lineage.path)) == 3


@causal
def test_a_process_that_comes_second_leaves_the_first_one_its_folder(tmp_path, place, monkeypatch):
    """It made the folder between the look at it and the lock."""
    lineage, path = Lineage("lineage"), tmp_path / "raced"
    check, held = Lineage.check_vacant, []

    def outrun(path):
        check(path)
        if not held:
            Path(path).mkdir()
            held.append(locked(Path(path)))
            held[0].__enter__()

    monkeypatch.setattr(Lineage, "check_vacant", staticmethod(outrun))
    with pytest.raises(PerdureError, match="another process is writing"):
        Lineage.create(path, lineage.config, lineage.pin)
    assert (path / "lock").exists()
    held[0].__exit__(None, None, None)
    (path / "notes.txt").write_text("of the first process")
    monkeypatch.setattr(Lineage, "check_vacant", check)
    with pytest.raises(PerdureError, match="exists and is not empty"):
        Lineage.create(path, lineage.config, lineage.pin)


@causal
def test_the_command_that_an_error_names_works_in_the_working_directory(place):
    settings = setting_for("causal", place)
    for name in ("g1", "g2"):
        Path(f"{name}.jsonl").write_bytes(Path("colour-train.jsonl").read_bytes())
    values = {**settings, "lineage": "sub/run", "method": "replay", "guard": None}
    run(load_config({**values, "general": {"file": "g1.jsonl"}}))
    with pytest.raises(PerdureError, match=r"general.file g1.jsonl, not g2.jsonl") as error:
        run(load_config({**values, "general": {"file": "g2.jsonl"}}))
    (words,) = re.findall(r"type `perdure (set .*?)`", str(error.value))
    assert perdure(*words.split()).status == 0
    run(load_config({**values, "general": {"file": "g2.jsonl"}}))


@causal
@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_settings_that_are_gone_are_written_again_by_the_command_that_is_named(place, damage):
    file = place / "lineage" / "lineage.yaml"
    whole = file.read_bytes()
    file.unlink() if damage == "missing" else file.write_text("- a list")
    with pytest.raises(PerdureError, match="`perdure repair lineage` writes it again"):
        run(load_config({**setting_for("causal", place), "lineage": "lineage"}))
    assert perdure("repair", "lineage").status == 0
    assert file.read_bytes() == whole
