"""Bad input: one line that says what, where and how to mend it, status 2, nothing changed."""

import shutil
from pathlib import Path

import pytest

from command import perdure, refused, tree, workplace, write_rows
from perdure.lineage.files import locked


pytestmark = pytest.mark.own


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A workplace whose lineage has learned both tasks."""
    folder = workplace(tmp_path_factory.mktemp("made"))
    assert perdure("run", folder / "run.yaml").status == 0
    return folder


@pytest.fixture
def place(tmp_path_factory) -> Path:
    """A workplace without a lineage."""
    return workplace(tmp_path_factory.mktemp("place"))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path_factory, monkeypatch):
    """What a verb might leave where it is typed is seen as well."""
    folder = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(folder)
    yield
    assert tree(folder) == {}


def test_a_missing_yaml(place):
    refused(place, "run", place / "ran.yaml", names=("ran.yaml: no such file", "give the path"))


def test_a_missing_file_of_rows(place):
    (place / "animal.jsonl").unlink()
    refused(
        place,
        "run",
        place / "run.yaml",
        names=("animal.jsonl", "no file", "did you mean 'animal-test.jsonl'?"),
    )


def test_a_missing_file_of_rows_for_learn(made):
    refused(
        made,
        *("learn", made / "lineage", "count", made / "colours.jsonl"),
        names=("colours.jsonl", "did you mean 'colour.jsonl'?"),
    )


def test_a_row_without_a_prompt(place):
    write_rows(place / "animal.jsonl", [{"prompt": "a", "completion": "b"}, {"completion": "b"}])
    refused(place, "run", place / "run.yaml", names=("animal.jsonl, row 2", "prompt"))


def test_a_misspelt_key(place):
    refused(
        place,
        *("run", place / "run.yaml", "metod=replay"),
        names=("unknown key 'metod'", "did you mean 'method'?"),
    )


def test_an_unknown_method(place):
    refused(
        place,
        *("run", place / "run.yaml", "method=reply"),
        names=("unknown method 'reply'", "did you mean 'replay'?"),
    )
    refused(place, "methods", "reply", names=("unknown method 'reply'", "'replay'"))


def test_a_base_that_is_not_there(place):
    absent = place / "absent"
    for arguments in (
        ("run", place / "run.yaml", f"base={absent}"),
        ("init", place / "new", "--base", absent),
        ("init", place / "new", "--base", "nobody/no-such-model"),
    ):
        refused(place, *arguments, names=("no model could be loaded", "give a folder"))


def test_a_base_without_its_weights(place):
    (place / "base" / "model.safetensors").unlink()
    refused(place, "init", place / "new", "--base", place / "base", names=("has no weights",))
    refused(place, "run", place / "run.yaml", names=("has no weights",))


def test_an_empty_task(place):
    (place / "colour.jsonl").write_text("")
    refused(place, "run", place / "run.yaml", names=("colour.jsonl", "no rows", "at least one"))


def test_a_folder_that_is_not_a_lineage(place):
    for arguments in (
        ("learn", place / "base", "colour", place / "colour.jsonl"),
        ("evaluate", place / "base"),
        ("log", place / "base"),
    ):
        refused(place, *arguments, names=("base: not a lineage", "perdure init"))


def test_a_lineage_by_almost_its_name(made):
    refused(made, "log", made / "linage", names=("not a lineage", f"did you mean {made}/lineage?"))


def test_a_folder_that_is_not_empty(place):
    refused(
        place,
        *("init", place / "base", "--base", place / "base"),
        names=("base: exists and is not empty", "give a new folder"),
    )


def test_a_changed_yaml(made):
    refused(
        made,
        *("run", made / "run.yaml", "training.learning_rate=1", "seed=3"),
        names=("seed 0, not", "seed cannot change any more", "lineage=FOLDER"),
    )


def test_changed_rows_of_a_finished_stage(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    original = (made / "colour.jsonl").read_text()
    write_rows(made / "colour.jsonl", [{"prompt": "red", "completion": "blue"}])
    try:
        refused(
            made,
            *("run", made / "run.yaml"),
            names=("stage 1 learned other rows of 'colour'", "restore the rows"),
        )
    finally:
        (made / "colour.jsonl").write_text(original)


def test_a_second_writer(made):
    with locked(made / "lineage"):
        for arguments in (
            ("run", made / "run.yaml"),
            ("learn", made / "lineage", "again", made / "colour.jsonl"),
        ):
            refused(made, *arguments, names=("another process is writing", "wait"))


def test_an_unknown_adapter_key(place):
    for verb in (("run", place / "run.yaml"), ("init", place / "new", "--base", place / "base")):
        refused(place, *verb, "adapter.rr=3", names=("adapter: LORA has no setting 'rr'",))


def test_an_adapter_that_does_not_fit_the_base(place):
    refused(
        place,
        *("run", place / "run.yaml", "adapter.target_modules=[nowhere]"),
        names=("adapter: PEFT refuses these settings", "nowhere"),
    )


def test_an_unknown_training_key(place):
    refused(
        place,
        *("run", place / "run.yaml", "training.learning_rat=1"),
        names=("training: unknown key 'learning_rat'", "did you mean 'learning_rate'?"),
    )


def test_a_training_value_that_is_refused(place):
    refused(place, "run", place / "run.yaml", "training.optim=adamm", names=("training: ", "adamm"))


def test_a_training_key_of_the_engine(place):
    refused(
        place,
        *("run", place / "run.yaml", "training.save_steps=3"),
        names=("'save_steps' is set by Perdure", "checkpoint_every"),
    )


def test_a_completion_too_long(place):
    rows = [{"prompt": "red", "completion": "one"}, {"prompt": "red", "completion": "one " * 9}]
    write_rows(place / "animal.jsonl", rows)
    refused(
        place,
        *("run", place / "run.yaml"),
        names=("animal train, row 2", "max_completion_length: 4", "raise it or shorten"),
    )


def test_a_completion_too_long_for_learn(made):
    long = write_rows(made / "long.jsonl", [{"prompt": "red", "completion": "one " * 9}])
    refused(
        made,
        *("learn", made / "lineage", "long", long),
        names=("long train, row 1", "max_completion_length: 4"),
    )


def test_a_test_set_that_cannot_be_scored(place):
    write_rows(place / "animal-test.jsonl", [{"text": "red blue"}])
    refused(place, "run", place / "run.yaml", names=("animal test", "no prompt"))


def test_an_unknown_metric(made):
    rows = (made / "colour.jsonl", "--test", made / "colour-test.jsonl")
    refused(
        made,
        *("learn", made / "lineage", "again", *rows, "--metric", "exact"),
        names=("unknown metric 'exact'", "did you mean 'exact_match'?"),
    )


def test_an_unknown_stage(made):
    refused(
        made, "evaluate", made / "lineage", "--stage", 7, names=("no stage 7", "valid: 0, 1, 2")
    )


def test_an_unknown_task(made):
    refused(
        made,
        *("evaluate", made / "lineage", "--task", "color"),
        names=("no task 'color'", "did you mean 'colour'?"),
    )


def test_an_unknown_scoring_mode(made):
    refused(
        made,
        *("evaluate", made / "lineage", "--mode", "option"),
        names=("unknown scoring mode 'option'", "did you mean 'options'?"),
    )


def test_nothing_to_evaluate(place):
    assert perdure("init", place / "new", "--base", place / "base").status == 0
    refused(
        place, "evaluate", place / "new", names=("nothing has been learned yet", "perdure learn")
    )


def test_an_unknown_preset(place):
    refused(
        place,
        *("run", place / "run.yaml", "method={recurrent_kif: {preset: papr}}"),
        names=("recurrent_kif: unknown preset 'papr'", "did you mean 'paper'?"),
    )
    refused(
        place,
        *("run", place / "run.yaml", "method={replay: {preset: paper}}"),
        names=("replay: has no presets, so leave out preset='paper'",),
    )
    refused(
        place,
        *("run", place / "run.yaml", "method=recurrent_kif_paper"),  # the name of a record
        names=("unknown method", "write '{recurrent_kif: {preset: paper}}'"),
    )


def test_an_override_without_a_value(place):
    refused(place, "run", place / "run.yaml", "replay", names=("'replay'", "key=value"))


def test_a_benchmark_without_its_rows(place, monkeypatch):
    monkeypatch.delenv("PERDURE_DATA", raising=False)
    run = ("run", place / "run.yaml", "tasks=standard_cl_1")
    refused(place, *run, names=("--data FOLDER", "PERDURE_DATA"))
    refused(place, *run, "--data", place, names=("train.jsonl.gz",))


def test_results_that_are_something_else(place):
    (place / "results.json").write_text("[]")
    refused(
        place,
        *("run", place / "run.yaml", "--results", place / "results.json"),
        names=("not a result file", "another name"),
    )


def test_an_unknown_option_is_status_2(place):
    before = tree(place)
    assert perdure("run", place / "run.yaml", "--resluts", "x").status == 2
    assert tree(place) == before


@pytest.mark.parametrize(
    "key",
    [
        *("fp16", "deepspeed", "dataloader_num_workers", "dataloader_persistent_workers"),
        *("ignore_data_skip", "bf16_full_eval", "batch_eval_metrics"),
    ],
)
def test_a_training_key_under_which_methods_could_not_work(place, key):
    refused(
        place,
        *("run", place / "run.yaml", f"training.{key}=true"),
        names=(f"training: '{key}' is not supported",),
    )
