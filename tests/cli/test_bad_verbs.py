"""Bad input of the verbs that look at a lineage, move in it and give from it."""

import shutil
from pathlib import Path

import pytest

from command import perdure, refused, workplace
from perdure.lineage.files import locked


pytestmark = pytest.mark.own


VERBS = ("show", "try", "chat", "set", "revert", "verify", "export", "push", "rebase")
MORE = {
    "try": ("red",),
    "set": ("memory.ratio=0.5",),
    "export": ("out",),
    "push": ("me/mine",),
    "rebase": ("base",),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A workplace whose lineage has learned both tasks."""
    folder = workplace(tmp_path_factory.mktemp("made"))
    assert perdure("run", folder / "run.yaml").status == 0
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """A copy of it, where the test stands; on the base of the first."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def bad(place: Path, *arguments: object, names: tuple[str, ...]) -> None:
    refused(place, *arguments, names=names)


@pytest.mark.parametrize("verb", VERBS)
def test_no_lineage_there(place, verb):
    bad(place, verb, "base", *MORE.get(verb, ()), names=("base: not a lineage", "perdure init"))
    bad(place, verb, "linage", *MORE.get(verb, ()), names=("did you mean lineage?",))


@pytest.mark.parametrize("verb", ["show", "try", "export", "push", "evaluate"])
def test_no_such_stage(place, verb):
    for stage, valid in ((3, "valid: 0, 1, 2"), (-1, "valid: 0, 1, 2")):
        words = (f"no stage {stage}", valid)
        bad(place, verb, "lineage", *MORE.get(verb, ()), "--stage", stage, names=words)


@pytest.mark.parametrize("verb", VERBS)
def test_a_broken_ledger(place, verb):
    file = Path("lineage/ledger.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[1:]))
    words = ("ledger.jsonl: line 1 does not follow", "restore the ledger from a copy")
    bad(place, verb, "lineage", *MORE.get(verb, ()), names=words)
    file.unlink()
    words = ("ledger.jsonl: missing or empty", "restore it from a copy")
    bad(place, verb, "lineage", *MORE.get(verb, ()), names=words)


@pytest.mark.parametrize("verb", ["try", "export", "evaluate", "learn"])
def test_a_base_that_is_another_one_now(place, verb):
    assert perdure("rebase", "lineage", "base").status == 0
    arguments = {"learn": ("more", "colour.jsonl")} | MORE
    Path("base/config.json").write_text(Path("base/config.json").read_text() + " ")
    words = ("config.json differs", "put its files back", "perdure rebase")
    bad(place, verb, "lineage", *arguments.get(verb, ()), names=words)
    shutil.rmtree("base")
    words = ("no such folder", "perdure rebase")
    bad(place, verb, "lineage", *arguments.get(verb, ()), names=words)


def test_try(place):
    bad(place, "try", "lineage", "", names=("the prompt is empty", "write what"))
    bad(place, "try", "lineage", "red", "--chat", names=("no chat template", "as plain text"))
    words = ("option 'one two three four five'", "max_completion_length", "shorten")
    bad(place, "try", "lineage", "red", "--option", "one two three four five", names=words)


def test_revert(place):
    bad(place, "revert", "lineage", "--to", 7, names=("no stage 7", "valid: 0, 1, 2"))
    bad(place, "revert", "lineage", "--to", 2, names=("stage 2 is already the newest",))
    assert perdure("init", "new", "--base", "base").status == 0
    bad(place, "revert", "new", names=("nothing has been learned yet",))


@pytest.mark.parametrize("verb", ["set", "revert", "rebase"])
def test_a_second_writer(place, verb):
    with locked(Path("lineage")):
        words = ("another process is writing", "wait")
        bad(place, verb, "lineage", *MORE.get(verb, ()), names=words)


def test_export(place):
    bad(place, "export", "lineage", "base", names=("base: exists and is not empty", "new folder"))
    words = ("dtype 'float15' is not a choice", "did you mean 'float16'?")
    bad(place, "export", "lineage", "out", "--dtype", "float15", names=words)


def test_rebase(place):
    words = ("'nowhere'", "no such folder", "hf download")
    bad(place, "rebase", "lineage", "nowhere", names=words)
    bad(place, "rebase", "lineage", "no/where/there", names=("no such folder",))
    bad(place, "rebase", "lineage", "lineage", names=("base 'lineage'", "has no weights"))


def test_push(place):
    bad(place, "push", "lineage", "mine", names=("'mine'", "OWNER/NAME"))
    bad(place, "push", "lineage", "me/mi ne", names=("not a repository's name",))
    bad(place, "push", "lineage", "me/mine", "--stage", 0, names=("stage 0 is the base",))
    words = ("me/mine: the upload failed", "offline", "hf auth login")
    bad(place, "push", "lineage", "me/mine", names=words)


def test_predictions_that_cannot_be_written(place):
    words = ("there is no folder", "create it")
    bad(place, "evaluate", "lineage", "--predictions", "no/said.jsonl", names=words)
    bad(place, "evaluate", "lineage", "--predictions", "base", names=("base: cannot be written",))


def test_init_on_an_adapter(place):
    init = ("init", "new", "--adapter")
    bad(place, *init, "base", names=("base: no adapter_config.json", "save_pretrained"))
    stage = "lineage/stages/0001-colour"
    bad(place, *init, stage, "adapter.r=3", names=("its own settings", "leave out r"))
    bad(place, *init, stage, "adapter=null", names=("its own settings", "leave out adapter=null"))
    bad(place, *init, stage, "--base", "nowhere", names=("'nowhere': no model could be loaded",))
    shutil.copytree(stage, "mine")
    Path("mine/adapter_model.safetensors").rename("mine/adapter_model.bin")
    bad(place, *init, "mine", names=("a pickled adapter cannot", "save the adapter again"))
    Path("mine/adapter_model.safetensors").write_bytes(b"no tensors")
    bad(place, *init, "mine", names=("mine: its weights do not load",))


def test_a_training_of_its_own(place):
    learn = ("learn", "lineage", "more", "colour.jsonl")
    for setting in ("method=replay", "adapter.r=3", "seed=2"):
        key = setting.partition("=")[0]
        words = (f"{key}: is set for the whole lineage", "training.learning_rate=1e-4")
        bad(place, *learn, setting, names=words)
    bad(place, *learn, "held-out.jsonl", names=("'held-out.jsonl'", "key=value"))
    words = ("task 'more'", "unknown key 'learning_rat'", "did you mean 'learning_rate'?")
    bad(place, *learn, "training.learning_rat=1", names=words)
    words = ("task 'more'", "learning_rate must be a number above 0", "'fast'")
    bad(place, *learn, "training.learning_rate=fast", names=words)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("learn", "lineage"), "learn: Missing argument 'NAME'; see `perdure learn --help`"),
        (("try", "lineage", "--stage", 0), "nothing to answer; give a prompt"),
        (("evaluate", "lineage", "--stage", "abc"), "evaluate: Invalid value for '--stage'"),
    ],
)
def test_a_command_that_does_not_fit_its_verb_is_told_in_one_line(place, arguments, named):
    bad(place, *arguments, names=(named,))
