"""General ability at every stage, and the gate that refuses a stage which lost too much."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import perdure as package
from command import perdure, tree
from perdure.api import check, log, run, show, verify
from perdure.config import load_config
from perdure.errors import PerdureError, RefusedError
from perdure.lineage.files import hash_folder
from perdure.lineage.lineage import Lineage
from perdure.measure.guard.kept import read_answers
from perdure.measure.guard.rows import read_guard_rows
from perdure.measure.statistics import sign_test
from perdure.verbs import advance
from perdure.verbs import general as general_verb
from place import learned, setting_for


pytestmark = pytest.mark.own

QUESTIONS = [f"what is a {word} ?" for word in ("rose", "fox", "leaf", "crow", "cherry", "coal")]
QUESTIONS += ["the sky ?", "a lemon ?", "is snow ?"]
FORGETFUL = {
    "memory": {"ratio": 0.0},
    "method": "sequential",
    "training": {"learning_rate": 2e-2, "num_train_epochs": 15},
}


def guard_file(lineage: Path, stage: str = "0001-colour") -> Path:
    return lineage / "stages" / stage / "guard.json.gz"


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Settings whose guard asks rows that the untouched base passes: to answer as it does."""
    folder = tmp_path_factory.mktemp("guarded")
    setting = {**setting_for("causal", folder), **FORGETFUL}
    rows = folder / "rows.jsonl"

    def write(checks: list[dict]) -> None:
        records = [
            {"id": f"q{i}", "prompt": question, "check": answer_check}
            for i, (question, answer_check) in enumerate(zip(QUESTIONS, checks, strict=True))
        ]
        rows.write_text("".join(json.dumps(record) + "\n" for record in records))

    write([{"says": ["anything"]}] * len(QUESTIONS))
    guard = {"rows": str(rows), "limit": len(QUESTIONS), "max_new_tokens": 8}
    first = {**setting, "tasks": setting["tasks"][:1], "guard": guard}
    learned(first, folder / "asked")
    answers = {
        kept.prompt: kept.base.text for kept in read_answers(guard_file(folder / "asked")).values()
    }
    assert len(answers) == len(QUESTIONS)
    write([{"is_one_of": [answers[question]]} for question in QUESTIONS])
    return {**setting, "guard": guard}


@pytest.fixture(scope="module")
def lost(setting, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lost")
    learned(setting, folder / "lineage")
    return folder / "lineage"


def test_a_stage_says_what_general_ability_it_lost(lost):
    general = show(lost, 1)["verdict"]["general"]
    count = len(QUESTIONS)
    assert (general["rows"], general["passed_by_reference"], general["judged"]) == (
        count,
        count,
        True,
    )
    assert general["fell"] + general["passed"] == count
    assert general["p"] == sign_test(general["fell"], general["rose"]) < 0.05
    assert general["lost"]
    assert not general["lost_before"]
    assert general["kl"] > 0
    text = perdure("show", lost, "--stage", 1).out
    assert f"general ability: {general['fell']} of {count} checks that the base passes" in text
    assert "perdure revert" in text
    assert "kl_base" in text
    assert log(lost)[1]["lost"] == ["general ability"]
    assert "lost: general ability" in perdure("log", lost).out


def test_what_was_lost_before_is_not_lost_again(lost):
    general = show(lost, 2)["verdict"]["general"]
    assert general["since"]["fell"] <= 1
    assert general["lost"]
    assert general["lost_before"]
    assert "lost before this stage already" in perdure("show", lost, "--stage", 2).out


def test_a_stage_that_was_not_measured_hides_no_earlier_loss(lost, monkeypatch):
    """A further stage is compared with the newest one that was measured, in the guard's rows."""
    lineage = Lineage(lost)
    first = lineage.stages[0]
    skipped = {"general": {"unmeasured": "the stage was so short"}}
    verdicts = {1: lineage.verdict(first), 2: skipped}
    monkeypatch.setattr(lineage, "verdict", lambda entry: verdicts[entry["stage"]])
    monkeypatch.setattr(lineage, "file", lambda entry, name: lineage.folder(first) / name)
    rows, kept = read_guard_rows(lineage.config.guard.rows), read_answers(guard_file(lost))
    asked = general_verb._since_the_last_stage(lineage, rows, kept, lost=True)
    assert asked == {"since": {"fell": 0, "rose": 0, "p": 1.0}, "lost_before": True}


def test_the_numbers_are_those_of_check(lost):
    """`check` asks the stored stage again, and gives what was measured when it was learned."""
    checked = check(lost, stage=1)
    general = show(lost, 1)["verdict"]["general"]
    for key in ("rows", "passed_by_reference", "passed", "fell", "rose", "p", "skills", "now"):
        assert checked[key] == general[key], key
    assert checked["kl"] == pytest.approx(general["kl"], rel=1e-4)
    assert perdure("check", lost, "--stage", 1).status == 3


def test_the_base_is_asked_only_once(lost, monkeypatch, tmp_path):
    """The base's answers at a later stage are those that the first one keeps."""
    first, second = (read_answers(guard_file(lost, s)) for s in ("0001-colour", "0002-animal"))
    assert {key: kept.base for key, kept in first.items()} == {
        key: kept.base for key, kept in second.items()
    }
    asked = []
    from perdure.verbs import general

    def counted(subject, rows, **settings):
        asked.append((subject.name, len(rows)))
        return general_ask(subject, rows, **settings)

    general_ask = general.ask
    monkeypatch.setattr(general, "ask", counted)
    copy = shutil.copytree(lost, tmp_path / "copy")
    perdure("revert", copy, "--to", 1)
    setting = Lineage(copy).config
    tasks = setting.tasks
    assert isinstance(tasks, list)
    package.learn(copy, "again", train=tasks[1]["train"], test=tasks[1]["test"])
    assert asked == [("stage 3", len(QUESTIONS))]


def test_what_changed_is_listed(lost):
    flips = [flip for flip in show(lost, 1, flips=True)["flips"] if flip["task"] == "(guard)"]
    general = show(lost, 1)["verdict"]["general"]
    assert len(flips) == general["fell"] + general["rose"]
    assert all(flip["before"] != flip["after"] for flip in flips)
    assert "(guard)" in perdure("show", lost, "--stage", 1, "--flips").out


def test_a_base_that_cannot_do_the_checks_is_only_compared_by_kl(setting, tmp_path):
    bundled = {**setting, "tasks": setting["tasks"][:1], "guard": {"limit": 7, "max_new_tokens": 4}}
    learned(bundled, tmp_path / "lineage")
    general = show(tmp_path / "lineage", 1)["verdict"]["general"]
    assert not general["judged"]
    assert not general["lost"]
    assert general["kl"] > 0
    assert "now" not in general
    text = perdure("show", tmp_path / "lineage").out
    assert "general ability: not judged, because the base itself passes only 0 of 7 checks" in text
    assert "KL from the base" in text


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"guard": None}, "the guard is switched off"),
        ({"guard": False}, "the guard is switched off"),
        ({"guard": {}}, "so short that the guard would have taken too long"),
    ],
)
def test_what_is_not_measured_says_why(setting, tmp_path, settings, reason):
    short = {**setting, "tasks": setting["tasks"][:1], "training": {"max_steps": 1}}
    learned({**short, **settings}, tmp_path / "lineage")
    assert reason in show(tmp_path / "lineage", 1)["verdict"]["general"]["unmeasured"]
    assert (
        f"general ability: not measured, because {reason}"
        in (perdure("show", tmp_path / "lineage").out.replace("the stage was ", ""))
        or "the stage was" in reason
    )
    assert not guard_file(tmp_path / "lineage").exists()


def test_a_stage_beyond_the_gate_is_refused(setting, tmp_path):
    """Its scores and files are kept aside, and the model is the one before."""
    gated = {**setting, "gate": {"forgetting": 0.05}, "lineage": str(tmp_path / "lineage")}
    with pytest.raises(RefusedError, match=r"animal was refused: colour fell from .* to .*"):
        run(gated)
    lineage = Lineage(tmp_path / "lineage")
    assert (lineage.head, len(lineage.stages), lineage.next_stage) == (1, 1, 2)
    line = lineage.ledger[-1]
    assert line["verb"] == "refused"
    assert set(line["scores"]) == {"colour", "animal"}
    folder = lineage.path / line["folder"]
    assert (folder / "adapter_model.safetensors").is_file()
    assert line["files"] == hash_folder(folder)
    assert verify(lineage.path) == []
    last = log(lineage.path)[-1]
    assert (last["verb"], last["active"], last["task"]) == ("refused", False, "animal")
    assert "colour fell from" in last["reasons"][0]
    assert "refused" in perdure("log", lineage.path).out
    (folder / "scores.json").write_text("{}")
    assert any("scores.json: changed" in problem for problem in verify(lineage.path))
    shutil.rmtree(folder)  # may be deleted
    assert verify(lineage.path) == []


def test_the_same_command_does_not_train_a_refused_stage_again(setting, tmp_path, monkeypatch):
    yaml = tmp_path / "stream.yaml"
    gated = {**setting, "gate": {"kl": 1e-6}, "lineage": str(tmp_path / "lineage")}
    yaml.write_text(json.dumps(gated))
    first = perdure("run", yaml)
    assert first.status == 3
    assert first.err.splitlines()[-1].startswith(
        "perdure: refused: colour was refused: KL from the"
    )
    before = tree(tmp_path / "lineage")
    monkeypatch.setattr("perdure.verbs.advance.learn_stage", None)  # would fail if called
    again = perdure("run", yaml)
    assert again.status == 3
    assert "was refused before, and is not learned again" in again.err
    assert tree(tmp_path / "lineage") == before
    monkeypatch.undo()
    assert perdure("set", tmp_path / "lineage", "gate.kl=100").status == 0
    yaml.write_text(json.dumps({**gated, "gate": {"kl": 100}}))
    assert perdure("run", yaml).status == 0
    assert len(Lineage(tmp_path / "lineage").stages) == 2
    assert verify(tmp_path / "lineage") == []


def test_what_the_verdict_depends_on_is_part_of_what_was_refused(setting, tmp_path):
    """A stage that was refused on a sample, or by other rows of the guard, is learned again."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "check": {"says": ["b"]}}\n')
    config = load_config({**setting, "guard": {"rows": str(rows)}, "scoring": {"sample": 5}})
    lineage = Lineage.create(tmp_path / "lineage", config, {"name": "b", "files": {}})
    plan = SimpleNamespace(info=SimpleNamespace(kind="causal"), lm_eval=None)

    def key(full: bool = False, **old_tasks: object) -> str:
        judged_on = advance._judged_on(config, plan, old_tasks, full=full)
        return lineage.decided_by({"stage": 2}, judged_on)

    keys = [key(colour="rows"), key(colour="rows", full=True), key(colour=None)]
    rows.write_text('{"prompt": "a", "check": {"says": ["c"]}}\n')
    keys.append(key(colour="rows"))
    plan.lm_eval = SimpleNamespace(documents={"arc": "0f"})
    keys.append(key(colour="rows"))
    assert len(set(keys)) == len(keys)
    assert key(colour="rows") == key(colour="other objects of the same rows")
    plain = load_config({**setting, "guard": None})
    plan.lm_eval = None
    assert advance._judged_on(plain, plan, {"colour": "rows"}, full=True) == {}


def test_the_gate_for_general_ability_refuses(setting, tmp_path):
    gated = {**setting, "gate": {"general": 0.05}, "lineage": str(tmp_path / "lineage")}
    with pytest.raises(RefusedError, match="of the 9 checks that the base passes fail"):
        run(gated)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guard": None, "gate": {"kl": 1}}, "gate: kl needs the guard, which is switched off"),
        ({"gate": {"forgetting": 0.1}, "scoring": {"old": "last"}}, "set scoring.old=each"),
        ({"gate": {"forgeting": 0.1}}, "did you mean 'forgetting'?"),
        ({"gate": {"general": 2}}, "gate.general: must be from 0 to 1, got 2"),
        ({"guard": {"share": -1}}, "guard.share: must be from 0 to 1"),
        ({"guard": {"rows": "missing.jsonl"}}, "missing.jsonl"),
    ],
)
def test_settings_that_are_wrong(setting, tmp_path, settings, message):
    with pytest.raises(PerdureError, match=message.replace("?", r"\?")):
        run({**setting, **settings, "lineage": str(tmp_path / "lineage")})
    assert not (tmp_path / "lineage").exists()


def test_an_encoder_has_no_general_ability(tmp_path):
    setting = setting_for("encoder", tmp_path)
    lineage = learned({**setting, "tasks": setting["tasks"][:1]}, tmp_path / "lineage")
    verdict = show(lineage.path, 1)["verdict"]
    assert verdict["general"]["unmeasured"] == "an encoder does not write"
    with pytest.raises(PerdureError, match=r"is an encoder; set gate\.forgetting instead"):
        run({**setting, "gate": {"kl": 1}, "lineage": str(tmp_path / "other")})
