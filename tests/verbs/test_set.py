"""`set`: the ledger has the settings, `lineage.yaml` shows them, and a stage keeps its own."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from command import perdure, refused
from perdure import PerdureError
from perdure.api import configure, init, learn, log, revert, run, show, verify
from perdure.config import Config, load_config
from perdure.lineage import lineage as module
from perdure.lineage.ledger import append
from perdure.lineage.lineage import Lineage
from perdure.lineage.settings import command, differences, stored
from perdure.reporting.read import read
from place import setting_for
from train.engine import Stopped


pytestmark = [pytest.mark.own, pytest.mark.parametrize("kind", ["causal"])]

FILE = Path("lineage/lineage.yaml")


def learn_again(name: str):
    return learn("lineage", name, "colour-train.jsonl", test="colour-test.jsonl")


def test_the_next_stage_is_learned_with_the_new_settings_and_the_others_keep_theirs(place):
    entry = configure("lineage", method=["replay"], **{"training.learning_rate": 1e-3})
    assert entry is not None
    assert entry["verb"] == "set"
    assert entry["changed"] == {
        "method": ["sequential", ["replay"]],
        "training.learning_rate": [1e-2, 1e-3],
    }
    written = yaml.safe_load(FILE.read_text())
    assert (written["method"], written["training"]["learning_rate"]) == (["replay"], 1e-3)
    assert verify("lineage") == []
    assert learn_again("more")["method"] == ["replay"]
    before, after = show("lineage", 2), show("lineage", 3)
    assert before["settings"]["training"]["learning_rate"] == 1e-2
    assert (before["changed"], after["changed"]) == ({}, entry["changed"])
    assert after["settings"]["training"]["learning_rate"] == 1e-3
    assert log("lineage")[-2]["changed"] == entry["changed"]
    history = perdure("log", "lineage").out
    assert 'method sequential -> ["replay"]; training.learning_rate 0.01 -> 0.001' in history
    assert 'method sequential -> ["replay"]' in perdure("show", "lineage", "--stage", 3).out
    keywords = {"preset": "lasting", "quantile": 0.9}
    configure("lineage", method=[{"recurrent_kif": keywords}, "kl_base"], **{"memory.ratio": 0.5})
    learn_again("once")
    line = log("lineage")[-1]
    assert line["method"] == "recurrent_kif_lasting+kl_base"
    assert line["method_in_words"] == "recurrent_kif (preset lasting, quantile 0.9) + kl_base"
    assert line["method_in_words"] in perdure("log", "lineage").out
    lineage = Lineage("lineage")
    methods = [lineage.config_at(stage).method for stage in lineage.stages[:3]]
    assert methods == ["sequential", "sequential", ["replay"]]


def test_the_weights_are_those_of_a_lineage_that_had_these_settings_from_the_start(place):
    """A stage depends on its own settings and on the stage before, not on the way to them."""
    shutil.copytree("lineage", "other")
    revert("lineage", 1)
    revert("other", 1)
    configure("lineage", **{"training.learning_rate": 1e-3})
    learned = learn_again("more")
    rate = ["training.learning_rate=1e-3"]
    result = perdure("learn", "other", "more", "colour-train.jsonl", *rate)
    assert result.status == 0, result.err
    weights = "adapter_model.safetensors"
    assert learned["files"][weights] == Lineage("other").stages[-1]["files"][weights]


def test_revert_leaves_the_newest_settings_in_force(place):
    configure("lineage", **{"memory.ratio": 0.5})
    revert("lineage", 1)
    assert Lineage("lineage").config.memory.ratio == 0.5
    assert yaml.safe_load(FILE.read_text())["memory"]["ratio"] == 0.5
    assert verify("lineage") == []


def test_what_is_set_already_adds_no_line(place):
    before = len(Lineage("lineage").ledger)
    assert configure("lineage", **{"training.learning_rate": 1e-2}) is None
    assert len(Lineage("lineage").ledger) == before
    result = perdure("set", "lineage", "training.learning_rate=1e-2")
    assert (result.status, result.out) == (0, "lineage: has these settings already\n")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], ("nothing to set", "memory.ratio=0.05")),
        (["learning_rate=1"], ("unknown key 'learning_rate'", "write training.learning_rate")),
        (["memory.ratio=much"], ("memory: ratio takes a number, got 'much'",)),
        (["memory.ratio=7"], ("memory.ratio: must be from 0 to 1, got 7",)),
        (["method=replai"], ("unknown method 'replai'", "did you mean 'replay'?")),
        (["config=x"], ("unknown key 'config'",)),
        (["seed=1"], ("seed: cannot change", "first weights", "make a new lineage")),
        (["adapter.r=3"], ("adapter.r: cannot change", "adapters have its shape")),
        (["adapter=null"], ("adapter: cannot change",)),
        (["mode=joint"], ("mode: cannot change", "learned in this mode")),
        (["scoring.mode=options"], ("scoring.mode: cannot change", "cannot be compared")),
        (["rows.train=3"], ("rows.train: cannot change", "which rows")),
        (["tasks=generated"], ("tasks: cannot change", "learned tasks of it")),
        (["base=default"], ("base: a lineage keeps its base", "perdure rebase")),
        (["lineage=x"], ("lineage: is the folder",)),
        (["data=x"], ("data: is given with each command", "--data")),
        (["method=osf"], ("osf: works on whole weights; adapter cannot change", "new lineage")),
        (["--config", "missing.yaml"], ("missing.yaml: no such file",)),
    ],
)
def test_a_setting_that_is_wrong_or_cannot_change(place, settings, words):
    refused(place, "set", "lineage", *settings, names=words)


def test_what_cannot_change_is_told_before_what_does_not_fit_it(place):
    """`adapter=null` does not fit an anchor to the base, and a mode takes no method."""
    configure("lineage", method=["replay", "kl_base"])
    refused(place, "set", "lineage", "adapter=null", names=("adapter: cannot change",))
    refused(place, "set", "lineage", "mode=per_task", names=("mode: cannot change",))
    refused(place, "set", "lineage", "memory.ratio=0", names=("remembers rows",))


def test_before_the_first_stage_all_but_the_base_can_change(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    setting = setting_for("causal", tmp_path, n=16)
    setting.pop("tasks")
    init("lineage", config=load_config(setting))
    configure("lineage", seed=3, adapter={"r": 2})
    lineage = Lineage("lineage")
    assert lineage.config.seed == 3
    assert lineage.config.adapter is not None
    assert lineage.config.adapter["r"] == 2
    assert verify("lineage") == []
    refused(tmp_path, "set", "lineage", "adapter.lora_alpah=3", names=("did you mean",))
    refused(tmp_path, "set", "lineage", "method=osf", names=("weights; set adapter=null",))
    entry = learn("lineage", "colour", "colour-train.jsonl")
    assert '"r": 2,' in (lineage.folder(entry) / "adapter_config.json").read_text()


def test_a_run_with_other_settings_says_what_to_type(place):
    settings = Lineage("lineage").config.to_dict() | {"lineage": "lineage"}
    line = r"lineage: has other settings \(method sequential, not replay; memory.ratio 0.1, not 0.5"
    other = {**settings, "method": "replay", "memory": {"ratio": 0.5}}
    with pytest.raises(PerdureError, match=line) as error:
        run(other)
    assert "type `perdure set lineage method=replay memory.ratio=0.5`" in str(error.value)
    configure("lineage", method="replay", **{"memory.ratio": 0.5})
    assert run(other).head == 2
    with pytest.raises(PerdureError, match=r"seed cannot change any more.*lineage=FOLDER"):
        run({**other, "seed": 4})


def test_a_stream_that_has_become_longer_is_taken_from_its_yaml(place):
    settings = Lineage("lineage").config.to_dict()
    longer = [*settings["tasks"], {"name": "third", "train": "colour-train.jsonl"}]
    stream = {**settings, "tasks": longer, "lineage": "lineage"}
    Path("stream.yaml").write_text(yaml.safe_dump(stream))
    refused(place, "run", "stream.yaml", names=("tasks", "perdure set lineage --config"))
    assert perdure("set", "lineage", "--config", "stream.yaml").status == 0
    assert perdure("run", "stream.yaml").status == 0
    assert [line["task"]["id"] for line in Lineage("lineage").stages][-1] == "third"
    Path("stream.yaml").write_text(yaml.safe_dump({**stream, "tasks": longer[1:]}))
    words = ("tasks: cannot change", "the first tasks are learned")
    refused(place, "set", "lineage", "--config", "stream.yaml", names=words)
    words = ("base: 'default' is not that of lineage", "make a new lineage")
    Path("stream.yaml").write_text(yaml.safe_dump({**stream, "base": "default"}))
    refused(place, "set", "lineage", "--config", "stream.yaml", names=words)


def test_an_edited_file_is_refused_and_the_line_says_what_to_type(place):
    text = FILE.read_text()
    FILE.write_text(text.replace("learning_rate: 0.01", "learning_rate: 0.5"))
    words = (
        "lineage.yaml: was edited (training.learning_rate 0.01 -> 0.5)",
        "type `perdure set lineage training.learning_rate=0.5` to use the new values",
        "`perdure set lineage training.learning_rate=0.01` restores the file",
    )
    refused(place, "log", "lineage", names=words)
    refused(place, "learn", "lineage", "more", "colour-train.jsonl", names=words)
    words = ("was edited, and training.learning_rate is not among", "restores the file")
    refused(place, "set", "lineage", "memory.ratio=0.5", names=words)
    assert perdure("set", "lineage", "training.learning_rate=0.01").status == 0
    assert FILE.read_text() == text
    FILE.write_text(text.replace("learning_rate: 0.01", "learning_rate: 0.5"))
    assert perdure("set", "lineage", "training.learning_rate=0.5").status == 0
    assert Lineage("lineage").config.training["learning_rate"] == 0.5
    FILE.write_text(FILE.read_text().replace("seed: 0", "seed: 7") + "# a comment\n")
    words = ("seed cannot change any more", "`perdure set lineage seed=0` restores the file")
    refused(place, "show", "lineage", names=words)


def test_a_stop_before_the_file_is_written_is_mended_by_the_next_verb(place, monkeypatch):
    def stopped(*arguments):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_settings", stopped)
        with pytest.raises(Stopped):
            configure("lineage", **{"memory.ratio": 0.5})
    assert yaml.safe_load(FILE.read_text())["memory"]["ratio"] == 0.1
    assert Lineage("lineage").config.memory.ratio == 0.5
    learn_again("more")
    assert yaml.safe_load(FILE.read_text())["memory"]["ratio"] == 0.5
    assert verify("lineage") == []


def test_a_lineage_that_is_older_than_a_setting_has_its_default(place):
    """As after an upgrade: neither the ledger nor the file has the key yet."""
    ledger = Path("lineage/ledger.jsonl")
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    del lines[0]["settings"]["mask_history"]
    ledger.unlink()
    ledger.with_name("newest.json").unlink()
    for line in lines:
        append(ledger, line)
    settings = yaml.safe_load(FILE.read_text())
    del settings["mask_history"]
    FILE.write_text(yaml.safe_dump(settings))
    assert Lineage("lineage").config.mask_history is False
    assert verify("lineage") == []
    entry = configure("lineage", mask_history=True)
    assert entry is not None
    assert entry["changed"] == {"mask_history": [False, True]}


def test_commands_for_changes_are_read_back_as_the_same_settings(kind, tmp_path):
    old = stored(Config(), tmp_path)
    new = stored(
        load_config(
            {
                "method": {"replay": {"ratio": 0.5}, "lwf": {}},
                "training": {"learning_rate": 1e-5, "optim": "adamw_torch"},
                "general": {"file": "hub:a/b", "ratio": 0.5},
                "tasks": [{"train": "a b.jsonl", "name": "it's"}],
                "adapter": None,
            }
        ),
        tmp_path,
    )
    for before, after in ((old, new), (new, old)):
        words = shlex.split(command(Path("m"), after, differences(before, after)))
        assert words[:3] == ["perdure", "set", "m"]
        assert stored(load_config(before, words[3:]), tmp_path) == after


def test_the_report_names_both_methods_and_repeats_the_change(place):
    configure("lineage", method="replay")
    learn_again("more")
    (lineage,) = read(["lineage"])
    assert lineage.method == "sequential then replay"
    assert "method: replay" not in lineage.rerun.settings
    verbs = [command.split()[1] for command in lineage.rerun.commands]
    assert verbs == ["init", "learn", "learn", "set", "learn"]
    Path("again.yaml").write_text(lineage.rerun.settings)
    for line in lineage.rerun.commands:
        result = perdure(*shlex.split(line)[1:])
        assert result.status == 0, result.err
    again, first = Lineage("again").stages, Lineage("lineage").stages
    weights = "adapter_model.safetensors"
    assert [e["files"][weights] for e in again] == [e["files"][weights] for e in first]
