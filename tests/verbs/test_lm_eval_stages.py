"""lm-eval's tasks at every stage: what they lost counts as general ability lost."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from command import perdure, refused, tree
from measure.guard.lm_eval_files import CHOICES, QUESTIONS, write_tasks
from perdure.api import check, init, log, show, verify
from perdure.config import Gate, GuardSettings, LmEvalSettings
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.lineage.settings import loaded, stored
from perdure.measure.gate import beyond
from perdure.measure.guard import lm_eval_tasks
from perdure.measure.guard.lm_eval_model import AskedModel
from perdure.measure.guard.lm_eval_result import Asked, Metric, read_kept
from perdure.measure.guard.lm_eval_tasks import LmEvalTasks
from perdure.measure.guard.subject import Subject
from perdure.models.as_is import load_as_is
from perdure.verbs import lm_eval
from place import learned, setting_for


pytestmark = pytest.mark.own

FORGETFUL = {
    "memory": {"ratio": 0.0},
    "method": "sequential",
    "training": {"learning_rate": 2e-2, "num_train_epochs": 6},
    "scoring": {"forward": False},
}
TASKS = ["choose", "write"]


def kept_file(lineage: Path, stage: str = "0001-colour") -> Path:
    return lineage / "stages" / stage / "lm_eval.json.gz"


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Settings whose guard runs two local tasks; the untouched base is right on all documents."""
    folder = tmp_path_factory.mktemp("harness")
    setting = {**setting_for("causal", folder, n=24), **FORGETFUL}
    tasks_folder = write_tasks(folder / "tasks", [0] * len(QUESTIONS), ["?"] * len(QUESTIONS))
    tasks = LmEvalTasks(LmEvalSettings(tasks=TASKS, include_path=str(tasks_folder)))
    base = load_as_is(setting["base"])
    tasks.try_on(base)
    responses = list(tasks.ask(Subject("base", base)).responses.values())
    likelihoods, texts = [r[0] for r in responses if not isinstance(r, str)], responses[-12:]
    pairs = zip(likelihoods[::2], likelihoods[1::2], strict=True)
    write_tasks(folder / "tasks", [int(second > first) for first, second in pairs], texts)
    return {**setting, "guard": {"lm_eval": {"tasks": TASKS, "include_path": str(tasks_folder)}}}


@pytest.fixture(scope="module")
def lineage(setting, tmp_path_factory):
    return learned(setting, tmp_path_factory.mktemp("lost") / "lineage").path


def test_a_stage_says_what_it_lost(lineage):
    """Its rows are too few for the guard's own checks, and lm-eval's tasks are run all the same."""
    general = show(lineage, 1)["verdict"]["general"]
    assert "too long" in general["unmeasured"]
    assert (general["lost"], general["lost_before"]) == (True, False)
    assert general["checks"] == {"lost": False}
    write = general["lm_eval"]["write"]
    assert (write["before"], write["documents"], write["rose"]) == (1.0, len(QUESTIONS), 0)
    assert write["fell"] == len(QUESTIONS) * (1 - write["now"])
    assert write["lost"]
    assert write["since"] == {"fell": 0, "rose": 0, "p": 1.0}
    line = (
        f"general ability (lm-eval's write): exact_match 1.000 -> {write['now']:.3f}, "
        f"{write['fell']} of 12 documents fell, 0 rose, p = {write['p']:.2g}: lost"
    )
    text = perdure("show", lineage, "--stage", 1).out
    assert line in text
    assert line in (lineage / "stages" / "0001-colour" / "README.md").read_text()
    assert log(lineage)[1]["lost"] == ["general ability"]
    assert perdure("report", lineage, "--out", lineage.parent / "report.html").status == 0
    page = (lineage.parent / "report.html").read_text()
    assert "general ability (lm-eval&#39;s write)" in page
    assert verify(lineage) == []


def test_what_was_lost_before_is_not_lost_again(lineage):
    write = show(lineage, 2)["verdict"]["general"]["lm_eval"]["write"]
    assert write["lost"]
    assert write["lost_before"] == (write["since"]["p"] >= 0.05)
    assert write["lost_before"]
    text = perdure("show", lineage, "--stage", 2).out
    assert "lost before this stage already" in text


def test_a_stage_that_was_not_measured_hides_no_earlier_loss(lineage, tmp_path, monkeypatch):
    """A task is compared with the newest stage that was asked it."""
    stored = Lineage(lineage)
    first = stored.stages[0]
    verdicts = {1: stored.verdict(first), 2: {"general": {"unmeasured": "it was switched off"}}}
    monkeypatch.setattr(stored, "verdict", lambda entry: verdicts[entry["stage"]])
    task = show(lineage, 1)["verdict"]["general"]["lm_eval"]["write"]
    metric = Metric(task["metric"], task["filter"], task["higher_is_better"])
    now = read_kept(kept_file(lineage)).values["write"]
    answers = iter((Asked({}, {"write": dict.fromkeys(now, 1.0)}), Asked({}, {"write": now})))
    tasks = SimpleNamespace(metrics={"write": metric}, ask=lambda *given: next(answers))
    measured = lm_eval.measure_tasks(stored, tasks, None, None, tmp_path)["write"]
    assert measured["lost"]
    assert measured["lost_before"]


def test_the_base_is_asked_only_once(lineage, setting, tmp_path, monkeypatch):
    first, second = (kept_file(lineage, stage) for stage in ("0001-colour", "0002-animal"))
    assert read_kept(first).responses == read_kept(second).responses
    asked = []
    respond = AskedModel.respond
    monkeypatch.setattr(
        AskedModel,
        "respond",
        lambda model, kind, requests: asked.append(len(requests)) or respond(model, kind, requests),
    )
    copy = shutil.copytree(lineage, tmp_path / "copy")
    perdure("revert", copy, "--to", 1)
    train = Lineage(copy).config.tasks[1]["train"]
    assert perdure("learn", copy, "again", train).status == 0
    assert asked == [len(QUESTIONS) * len(CHOICES), len(QUESTIONS)]  # the stage's


def test_the_other_files_of_a_stage_are_the_same_without_it(lineage, setting, tmp_path):
    plain = {**setting, "guard": {}, "tasks": setting["tasks"][:1]}
    other = learned(plain, tmp_path / "other").path
    ours, theirs = (tree(path / "stages" / "0001-colour") for path in (lineage, other))
    assert [name for name in ours if name not in theirs] == ["lm_eval.json.gz"]
    differ = {name for name in theirs if ours[name] != theirs[name]}
    assert differ == {"verdict.json", "README.md"}


def test_check_has_the_same_numbers(lineage, setting, tmp_path):
    stored = show(lineage, 2)["verdict"]["general"]["lm_eval"]
    checked = check(lineage, limit=7, max_new_tokens=1)  # the lineage's tasks
    own = ("since", "lost_before")
    for name in TASKS:
        assert checked["lm_eval"][name] == {k: v for k, v in stored[name].items() if k not in own}
    assert checked["lost"]
    arguments = ("--lm-eval", "write,choose", "--lm-eval-limit", 4, "--limit", 7, "--tokens", 1)
    printed = perdure("check", lineage, *arguments)
    assert printed.status == 0, printed.err  # so few documents cannot show a loss
    assert "4 of 4 documents fell, 0 rose, p = 0.062: too few documents to tell" in printed.out
    folder = setting["guard"]["lm_eval"]["include_path"]
    alone = perdure(
        *("check", setting["base"], "--against", setting["base"], "--lm-eval", "write"),
        *("--lm-eval-path", folder, "--limit", 7, "--tokens", 1, "--json"),
    )
    assert alone.status == 0, alone.err
    assert alone.json["lm_eval"]["write"]["now"] == 1.0


def test_the_gate_limits_the_fall_of_a_mean(lineage):
    judged = show(lineage, 1)["verdict"]
    fallen = [name for name in TASKS if judged["general"]["lm_eval"][name]["fell"] > 1]
    reasons = beyond(Gate(general=0.1), judged)
    assert [f"lm-eval's {name}" in reason for name, reason in zip(fallen, reasons, strict=True)]
    assert beyond(Gate(general=1), judged) == []


def test_the_folder_of_tasks_is_relative_to_the_settings(setting, tmp_path, monkeypatch):
    shutil.copytree(setting["guard"]["lm_eval"]["include_path"], tmp_path / "tasks")
    monkeypatch.chdir(tmp_path)
    guard = {"lm_eval": {"tasks": ["write", "tasks/choose.yaml"], "include_path": "tasks"}}
    settings = {k: v for k, v in setting.items() if k not in ("tasks", "base")}
    init("models/lineage", setting["base"], **{**settings, "guard": guard})
    stored = yaml.safe_load(Path("models/lineage/lineage.yaml").read_text())["guard"]["lm_eval"]
    assert stored["include_path"] == "../../tasks"
    assert stored["tasks"] == ["write", "../../tasks/choose.yaml"]
    monkeypatch.chdir("models")
    assert Lineage("lineage").config.guard.lm_eval.include_path == "../tasks"
    set_limit = perdure("set", "lineage", "guard.lm_eval.limit=3")
    assert set_limit.status == 0, set_limit.err


@pytest.mark.parametrize(
    ("lm_eval", "names"),
    [
        ({"tasks": []}, ("guard.lm_eval.tasks: give a list of lm-eval's tasks",)),
        ({"tasks": ["write"], "include_path": "gone"}, ("include_path: gone: no such folder",)),
        ({"tasks": ["gone.yaml"]}, ("gone.yaml: no such file",)),
        ({"task": ["write"]}, ("unknown key 'task'; did you mean 'tasks'?",)),
        ({"tasks": ["write"], "limit": 0}, ("guard.lm_eval.limit: must be at least 1",)),
    ],
)
def test_settings_that_are_wrong(setting, tmp_path, lm_eval, names, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = {**setting, "lineage": "lineage", "guard": {"lm_eval": lm_eval}}
    Path("run.yaml").write_text(json.dumps(wrong))
    refused(tmp_path, "run", "run.yaml", names=names)


def test_a_lineage_names_no_task_in_its_own_folder(setting, tmp_path, monkeypatch):
    """Such a task may have Python functions, and the lineage may be a stranger's."""
    monkeypatch.chdir(tmp_path)
    for value in ({"tasks": ["a"], "include_path": "lineage/x"}, {"tasks": ["lineage/x/a.yaml"]}):
        shutil.rmtree("lineage", ignore_errors=True)
        init("lineage", setting["base"], guard=None)
        (tmp_path / "lineage" / "x").mkdir()
        (tmp_path / "lineage" / "x" / "a.yaml").write_text("task: a\n")
        config = Lineage("lineage").config
        config.guard = GuardSettings(lm_eval=LmEvalSettings(**value))
        with pytest.raises(PerdureError, match="which lies in the lineage"):
            stored(config, Path("lineage"))
        written = {**Lineage("lineage").settings, "guard": {"lm_eval": value}}
        inside = json.loads(json.dumps(written).replace("lineage/x", "x"))
        with pytest.raises(PerdureError, match="which lies in the lineage"):
            loaded(inside, Lineage("lineage").pin, Path("lineage"))


def test_it_says_which_extra_is_missing(setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lm_eval_tasks, "find_spec", lambda name: None)
    Path("run.yaml").write_text(json.dumps({**setting, "lineage": "lineage"}))
    refused(tmp_path, "run", "run.yaml", names=("pip install 'perdure[lm-eval]'",))
    base = setting["base"]
    arguments = ("check", base, "--against", base, "--lm-eval", "arc_easy")
    refused(tmp_path, *arguments, names=("pip install 'perdure[lm-eval]'",))
    refused(tmp_path, *arguments[:4], "--lm-eval-limit", 3, names=("name them with --lm-eval",))


def test_an_encoder_has_no_tasks(tmp_path):
    setting = setting_for("encoder", tmp_path)
    with pytest.raises(PerdureError, match="is an encoder; leave it out"):
        learned({**setting, "guard": {"lm_eval": {"tasks": ["write"]}}}, tmp_path / "lineage")
