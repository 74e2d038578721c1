"""Every verb, as it is typed: what it prints, and that the same command goes on."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import perdure as package
from command import perdure, tree, workplace
from perdure.api import run_config
from perdure.cli import VERBS
from perdure.cli.output import PACKAGE, warning_text
from perdure.train.stage import learn_stage
from perdure.verbs import advance


HEAVY = ("torch", "transformers", "peft", "datasets")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A workplace whose lineage has learned both tasks, with the run's result file."""
    folder = workplace(tmp_path_factory.mktemp("place"))
    ran = perdure("run", folder / "run.yaml", "--results", folder / "results" / "all.json")
    assert ran.status == 0, ran.err
    (folder / "said.txt").write_text(ran.out)
    (folder / "progress.txt").write_text(ran.err)
    return folder


def loaded_by(code: str, modules: tuple[str, ...] = HEAVY) -> list[str]:
    """Which of the modules are loaded after `code`, in a process of its own."""
    code = f"import sys\n{code}\nprint([m for m in {modules} if m in sys.modules], file=sys.stderr)"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return json.loads(process.stderr.replace("'", '"'))


def test_import_perdure_loads_nothing_heavy():
    assert loaded_by("import perdure") == []
    assert (
        loaded_by("import perdure; perdure.Config, perdure.Lineage, perdure.Task, perdure.run")
        == []
    )


def test_the_list_of_verbs_imports_none_of_them():
    """So that it takes little longer than typer itself: no YAML, no tables, no verb."""
    lines = "from perdure.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    light = ("yaml", "perdure.api", "perdure.config", *HEAVY)
    assert loaded_by(lines, light) == []
    listed = perdure("--help").out
    for verb in VERBS:
        assert f"\n  {verb} " in listed
    assert "..." not in listed.partition("Commands:")[2]  # every line is whole


def test_help_loads_nothing_heavy():
    lines = "from perdure.cli import main\n"
    for arguments in (["--help"], *([verb, "--help"] for verb in VERBS)):
        lines += f"try: main({arguments})\nexcept SystemExit as e: assert not e.code\n"
    assert loaded_by(lines) == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_in_its_help_and_prints_json(verb):
    help = perdure(verb, "--help")
    assert help.status == 0
    assert f"Example: perdure {verb}" in help.out
    assert "--json" in help.out


def test_run_prints_the_matrix_the_summary_and_what_to_type_next(place):
    output = (place / "said.txt").read_text()
    for words in ("base", "1 colour", "2 animal", "OP", "BWT", "mode: generate"):
        assert words in output
    assert f"lineage:      {place}/lineage" in output
    assert "perdure init my-model" in output


def test_run_tells_each_task_it_has_learned_on_stderr(place):
    progress = (place / "progress.txt").read_text().splitlines()
    lines = [line for line in progress if not line.startswith("warning: ")]  # of the toy rows
    assert len(lines) == 4
    assert lines[0] == "1/2 colour: 2 steps"
    assert re.fullmatch(r"1/2 colour: 2 steps in \d+\.\d s, score \d\.\d{3}", lines[1])


def test_run_again_changes_nothing_and_prints_the_same_numbers(place):
    before = tree(place)
    result = perdure("run", place / "run.yaml", "--json")
    assert tree(place) == before
    keys = ["method", "overall", "backward_transfer", "forward_transfer", "lineage", "matrix"]
    keys.append("verdicts")
    assert list(result.json) == keys
    assert result.json["method"] == "sequential"
    assert result.json["matrix"]["tasks"] == ["colour", "animal"]
    assert len(result.json["matrix"]["rows"]) == 3
    assert result.err == ""


def test_run_writes_results_that_a_second_method_joins(place):
    file = place / "results" / "all.json"
    perdure("run", place / "run.yaml", "--results", file)  # the same run: the same record
    second_method = ("method={recurrent_kif: {preset: paper}}", f"lineage={place}/other")
    ran = perdure("run", place / "run.yaml", *second_method, "--results", file)
    assert ran.status == 0, ran.err
    results = json.loads(file.read_text())
    assert list(results) == ["benchmark", "command", "versions", "device", "date", "records"]
    assert results["benchmark"] == "run"
    assert results["device"] == "cpu, 1 thread"
    assert [r["method"] for r in results["records"]] == ["sequential", "recurrent_kif_paper"]
    record = results["records"][0]
    assert (record["order"], record["seed"]) == ("colour+animal", 0)
    assert record["seconds"] > 0
    assert record["seconds_scoring"] > 0
    for name in ("sequential", "recurrent_kif_paper"):
        assert len(re.findall(rf"^ *{name} .*\d", ran.out, re.MULTILINE)) == 1


def test_a_yaml_without_a_lineage_puts_it_under_its_own_name(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = (place / "run.yaml").read_text()
    (tmp_path / "short.yaml").write_text(re.sub("lineage: .*\n", "", text))
    ran = perdure("run", "short.yaml", "method=replay", "rows.train=8", "--json")
    assert ran.json["lineage"] == "short/replay"
    assert (tmp_path / "short" / "replay" / "lineage.yaml").exists()


def test_init_learn_log_and_evaluate(place):
    folder = place / "mine"
    settings = ("adapter.r=2", "training.num_train_epochs=1", "threads=1", "scoring.forward=false")
    result = perdure("init", folder, "--base", place / "base", *settings)
    assert result.status == 0, result.err
    assert f"perdure learn {folder}" in result.out
    assert "recurrent_kif (preset lasting) + kl_base" in result.out
    assert "stored:       5 % of the rows of each task" in result.out
    assert f"cheaper:      perdure set {folder} 'method=[replay,kl_base]'" in result.out
    assert re.search(r"general +none", result.out)
    rows = (place / "colour.jsonl", "--test", place / "colour-test.jsonl")
    learned = perdure("learn", folder, "colour", *rows, "--json")
    assert learned.json["stage"] == 1
    assert learned.json["task"]["id"] == "colour"
    again = perdure("learn", folder, "colour", *rows)
    assert "already learned, as stage 1" in again.err
    assert "other test rows" not in again.err
    again = perdure("learn", folder, "colour", rows[0], "--test", rows[0])
    assert "warning: colour: stage 1 was scored on other test rows" in again.err
    log = perdure("log", folder, "--json").json
    assert [line["verb"] for line in log] == ["init", "learn"]
    assert log[1]["scores"] == learned.json["scores"]
    assert "colour" in perdure("log", folder).out
    cells = perdure("evaluate", folder, "--json").json
    assert cells["colour"]["score"] == learned.json["scores"]["colour"]
    assert cells["colour"]["rows"] == 8


def test_init_takes_the_yaml_of_a_run(place):
    folder = place / "from-yaml"
    result = perdure("init", folder, "--config", place / "run.yaml", "--json", "seed=5")
    assert result.json["lineage"] == str(folder)
    assert package.Lineage(folder).config.seed == 5
    assert perdure("log", folder).out.count("no stage yet") == 1


def test_evaluate_changes_nothing_and_takes_stage_task_and_mode(place):
    before = tree(place)
    cells = perdure("evaluate", place / "lineage", "--stage", 1, "--task", "animal", "--json").json
    assert list(cells) == ["animal"]
    assert cells["animal"]["mode"] == "generate"
    result = perdure("evaluate", place / "lineage", "--stage", 0, "--mode", "options")
    assert "options" in result.out
    assert tree(place) == before


def test_methods_lists_every_method_with_its_family():
    listed, text = perdure("methods", "--json").json, perdure("methods").out
    assert {"sequential", "replay", "recurrent_kif"} <= {method["name"] for method in listed}
    for method in listed:
        keys = ["name", "family", "summary", "paper", "keywords", "presets", "measured"]
        assert list(method) == keys
        assert "\n" not in method["summary"]
        assert method["summary"] in text
    replay = next(method for method in listed if method["name"] == "replay")
    assert replay["keywords"] == [
        {"name": "ratio", "type": "float", "default": 0.5},
        {"name": "decay", "type": "float", "default": 0.0},
        {"name": "max_repeats", "type": "int | null", "default": None},
    ]


def test_methods_name_prints_keywords_and_the_presets_with_what_is_open():
    text = perdure("methods", "recurrent_kif").out
    for words in ("inner_steps", "float | null", "inner | constant", "preset: paper", "release"):
        assert words in text
    assert re.search(r"outer_learning_rate +null \* +0.001", text)
    assert "* paper, outer_learning_rate: not given" in text
    methods = perdure("methods", "recurrent_kif", "--json").json
    assert [method["name"] for method in methods] == ["recurrent_kif"]


def test_the_keyboard_stops_a_run_which_then_goes_on(tmp_path, monkeypatch):
    place = workplace(tmp_path)

    def stopped(base, plan, *rest):
        if plan.task == "animal":
            raise KeyboardInterrupt
        return learn_stage(base, plan, *rest)

    monkeypatch.setattr(advance, "learn_stage", stopped)
    status, out, err = perdure("run", place / "run.yaml")
    assert (status, out) == (130, "")
    assert err.splitlines()[-1] == "perdure: stopped; repeat the same command to continue"
    monkeypatch.undo()
    assert perdure("run", place / "run.yaml", "--json").json["matrix"]["learned_at"] == [1, 2]


def test_in_python_the_verbs_are_as_short(place, tmp_path):
    folder = tmp_path / "my-model"
    small = {"adapter.r": 2, "training.num_train_epochs": 1, "threads": 1}
    package.init(folder, base=str(place / "base"), **small)
    rows = [{"prompt": "the cat is", "completion": "red"}] * 8
    entry = package.learn(folder, "cats", train=rows, test=str(place / "colour-test.jsonl"))
    assert entry["stage"] == 1
    assert package.evaluate(folder)["cats"]["score"] == entry["scores"]["cats"]
    again = package.run(package.load_config(place / "run.yaml"))
    settings = yaml.safe_load((place / "run.yaml").read_text())
    settings["training"]["learning_rate"] = 1e-2  # YAML 1.1 reads a text here
    assert package.run(settings).matrix() == again.matrix()
    assert again.matrix() == package.run(place / "run.yaml").matrix()
    with pytest.raises(package.PerdureError, match="num_train_epochs 1, not 2"):
        package.run(place / "run.yaml", **{"training.num_train_epochs": 2})


def test_settings_are_laid_over_a_config_and_leave_the_callers_own_alone(place, tmp_path):
    config = package.load_config(place / "run.yaml")
    before = config.to_dict()
    combined = run_config(config, None, {"method": "replay", "lineage": "elsewhere"})
    assert (combined.method, combined.lineage) == ("replay", "elsewhere")
    lineage = package.init(tmp_path / "made", config=config, **{"training.num_train_epochs": 3})
    assert lineage.config.training["num_train_epochs"] == 3
    assert config.to_dict() == before


def test_a_warning_of_the_package_is_one_line():
    file = str(PACKAGE / "methods" / "ewc.py")
    assert warning_text("lost\nby rank", UserWarning, file, 3) == "warning: lost by rank\n"
    elsewhere = warning_text("theirs", UserWarning, "/somewhere/else.py", 3, "")
    assert elsewhere.startswith("/somewhere/else.py:3: UserWarning: theirs")
