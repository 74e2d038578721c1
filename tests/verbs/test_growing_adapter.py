"""A lineage whose adapter grows with every task: each verb takes its stages as any others."""

import contextlib
import functools
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from command import perdure, tree
from perdure import PerdureError
from perdure.api import (
    answer,
    compact,
    configure,
    evaluate,
    export,
    merge,
    repair,
    revert,
    run,
    statistics,
    verify,
)
from perdure.config import load_config
from perdure.lineage import lineage as lineage_module
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import base_at, stage_folder
from perdure.models import hashing
from perdure.say import silent
from perdure.train import stage
from perdure.train.stage import score
from perdure.verbs import verify as verify_module
from perdure.verbs.dry_run import dry_run_of_learn
from perdure.verbs.whole_model import load_whole
from place import init, learn, output, setting_for, stage_output, task
from tiny import tiny_rows
from train.engine import Stop, Stopped


AUTO = {"causal": AutoModelForCausalLM, "encoder": AutoModel}
WEIGHTS = "adapter_model.safetensors"
TASKS = ("colour", "animal", "count")
PLACES = [
    ("causal", "olora"),
    pytest.param("encoder", "olora", marks=pytest.mark.own),
    pytest.param("causal", "inflora", marks=[pytest.mark.own, pytest.mark.slow]),
]
pytestmark = pytest.mark.parametrize(("kind", "method"), PLACES)


@pytest.fixture(scope="module")
def run_of_three(tmp_path_factory):
    """A folder with a base, rows of three tasks, and the lineage `lineage` of a run over them."""

    @functools.cache
    def made(kind: str, method: str) -> tuple[Path, dict, list[torch.Tensor]]:
        folder = tmp_path_factory.mktemp(f"{kind}-{method}")
        setting = setting_for(kind, folder, n=24)
        for split, n in (("train", 24), ("test", 10)):
            lines = [json.dumps(row) + "\n" for row in tiny_rows("count", n, seed=n)]
            (folder / f"count-{split}.jsonl").write_text("".join(lines))
        files = {name: [f"{name}-{split}.jsonl" for split in ("train", "test")] for name in TASKS}
        setting |= {
            "base": "base",
            "method": method,
            "adapter": {"r": 2, "lora_alpha": 4},
            "tasks": [{"name": n, "train": a, "test": b} for n, (a, b) in files.items()],
            "max_length": 64,
            "checkpoint_every": 1,
        }
        live, original = [], stage.save_weights

        def save_weights(base, folder):
            live.append(output(base.network, base.tokenizer))
            original(base, folder)

        with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "save_weights", save_weights)
            run(load_config({**setting, "lineage": "lineage"}))
        return folder, setting, live

    return made


@pytest.fixture
def here(run_of_three, kind, method, tmp_path, monkeypatch):
    """The settings of a run and the live outputs of its stages; the test stands in a copy of it."""
    folder, setting, live = run_of_three(kind, method)
    shutil.copytree(folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return setting, live


def test_a_stage_stores_each_tasks_adapter_once(here, method):
    lineage = Lineage("lineage")
    folders = [lineage.folder(entry) for entry in lineage.stages]
    assert [folder for folder in folders if (folder / WEIGHTS).exists()] == folders[-1:]
    assert [len(entry.get("contains", ())) for entry in lineage.stages] == [0, 1, 2]
    adapters = [load_file(lineage.file(entry, WEIGHTS)) for entry in lineage.stages]
    for number, (old, new) in enumerate(itertools.pairwise(adapters), start=1):
        assert old.keys() == new.keys()
        for name, tensor in old.items():
            rank = 2 * number
            first = new[name][:rank] if "lora_A" in name else new[name][:, :rank]
            assert torch.equal(first, tensor)
            assert new[name].numel() - tensor.numel() == tensor.numel() / number
    names = {name for folder in folders for name in load_file(folder / "method.safetensors")}
    assert {name.split(".")[1] for name in names} <= {"rank", "used", "free"}


def adapter(stage: int, folder: str = "lineage") -> Path:
    """The folder of a stage with the file of its adapter, which a later one may contain."""
    lineage = Lineage(folder)
    file = lineage.file(lineage.at(stage), WEIGHTS)
    assert file is not None
    return file.parent


def test_each_stage_is_one_plain_adapter_that_gives_what_the_live_model_gave(here, kind):
    for number in (1, 2, 3):
        settings = json.loads((adapter(number) / "adapter_config.json").read_text())
        assert (settings["r"], settings["lora_alpha"]) == (2 * number, 4 * number)
        tensors = load_file(adapter(number) / WEIGHTS)
        ranks = {t.shape["lora_B" in name] for name, t in tensors.items()}
        assert ranks == {2 * number}
        plain = PeftModel.from_pretrained(AUTO[kind].from_pretrained("base"), adapter(number))
        plain_output = output(plain, AutoTokenizer.from_pretrained("base"))
        assert torch.equal(plain_output, here[1][number - 1])
        assert torch.equal(plain_output, stage_output("lineage", number))
    assert not torch.allclose(here[1][1], here[1][2])


def test_what_old_tasks_learned_stands_in_every_later_stage_bitwise(here):
    one, two, three = (load_file(adapter(n) / WEIGHTS) for n in (1, 2, 3))
    for earlier, later in ((one, two), (two, three)):
        for name, tensor in earlier.items():
            old = tensor.shape
            assert torch.equal(later[name][: old[0], : old[1]], tensor)


def test_scored_shown_exported_and_verified(here, kind):
    lineage = Lineage("lineage")
    for number in (2, 3):
        cells = {name: cell["score"] for name, cell in evaluate("lineage", number).items()}
        stored = lineage.scores(lineage.at(number))["after"]
        assert {name: cells[name] for name in stored} == {n: c["score"] for n, c in stored.items()}
    prompt = tiny_rows("count")[0]["prompt"]
    base = base_at(lineage, lineage.at(3))
    counted = score(base, task("count"), lineage.config)[0]["score"]
    assert counted == lineage.at(3)["scores"]["count"]
    assert isinstance(answer("lineage", [prompt])[0], str)
    export("lineage", "out")
    plain = AUTO[kind].from_pretrained("out")
    plain_output = output(plain, AutoTokenizer.from_pretrained("out"))
    torch.testing.assert_close(plain_output, stage_output("lineage"), rtol=1e-5, atol=1e-5)
    assert verify("lineage") == []


def test_task_by_task_it_is_the_same_bytes(here):
    setting = {k: v for k, v in here[0].items() if k != "tasks"}
    init("again", load_config(setting))
    for name in TASKS:
        learn("again", task(name))
    for number in (1, 2, 3):
        one, two = tree(adapter(number)), tree(adapter(number, "again"))
        assert one.keys() == two.keys()
        differ = [name for name in one if one[name] != two[name]]
        assert differ == []


def test_killed_inside_a_task_it_ends_in_the_same_bytes(here):
    lines: list[str] = []
    settings = {**here[0], "lineage": "killed"}
    with pytest.raises(Stopped):
        run(load_config(settings), callbacks=[Stop(2, task=3)])
    assert len(Lineage("killed").stages) == 2
    run(load_config(settings), say=lines.append)
    assert "count: going on from step 2" in lines
    assert tree(adapter(3)) == tree(adapter(3, "killed"))
    assert verify("killed") == []


def test_reverted_and_tried_and_learned_again(here):
    before = tree(adapter(2))
    revert("lineage", 1)
    assert dry_run_of_learn("lineage", task("animal"), silent)["steps"] == 3
    learn("lineage", task("animal"))
    after = tree(adapter(4))
    same = [name for name in before if name.endswith("adapter_config.json")]
    assert same
    assert all(after[name] == before[name] for name in same)
    revert("lineage", 0)
    learn("lineage", task("colour"))
    assert json.loads((adapter(5) / "adapter_config.json").read_text())["r"] == 2
    learn("lineage", task("animal"))
    assert json.loads((adapter(6) / "adapter_config.json").read_text())["r"] == 4
    assert verify("lineage") == []


def test_another_lineage_goes_on_from_such_a_stage(here):
    few = {"training": here[0]["training"], "max_completion_length": 4, "max_length": 64}
    init("next", load_config({**few, "method": here[0]["method"], "threads": 1}), adapter(3))
    assert torch.equal(stage_output("next", 0), stage_output("lineage", 3))
    begun = export("next", "begun", adapter=True)
    assert (begun / WEIGHTS).read_bytes() == (adapter(3) / WEIGHTS).read_bytes()
    assert "no task has been learned yet" in (begun / "README.md").read_text()
    learn("next", task("colour"))
    assert verify("next") == []


def test_an_earlier_adapter_is_cut_out_of_a_later_one_where_it_is_needed(here):
    def folder_of(number: int) -> Path:
        lineage = Lineage("lineage")
        return lineage.folder(lineage.stage_entries[number])

    def stored() -> list[int]:
        numbers = sorted(Lineage("lineage").stage_entries)[1:]
        return [n for n in numbers if (folder_of(n) / WEIGHTS).exists()]

    before = tree(Path("lineage"))
    assert verify("lineage") == []
    assert tree(Path("lineage")) == before
    assert stored() == [3]
    evaluate("lineage", 1)
    assert tree(Path("lineage")) == before  # reading a stage writes nothing
    one, other = Path("lineage/stages/0001-colour"), Path("other")
    merge([one, one], rule="average", into=other, base="base")
    assert (other / WEIGHTS).exists()
    revert("lineage", 1)
    configure("lineage", **{"gate.forgetting": 1.0})
    assert stored() == [1, 3]  # the newest stage always has its file
    learn("lineage", task("count"))
    assert stored() == [3, 4]
    folders = [f"stages/{name}" for name in ("0004-count", "0003-count", "0002-animal")]
    assert Lineage("lineage").contained == {
        "stages/0001-colour": folders,
        "stages/0002-animal": folders[1:2],
    }
    assert "is within that of stage 4" in perdure("show", "lineage", "--stage", 1).out
    kept = {stage["stage"]: stage["reason"] for stage in compact("lineage")["kept"]}
    assert kept[3] == "the adapter of stage 2 is within its own"
    with pytest.raises(PerdureError, match="the adapter of stage 2 is within that of stage 3 and"):
        compact("lineage", stages=[3])
    with pytest.raises(PerdureError, match="the adapter of stage 1 is within that of stage 4 and"):
        compact("lineage", stages=[1])
    # Stage 1 is cut out of stage 3 if stage 4 is damaged.
    newest = Path("lineage/stages/0004-count") / WEIGHTS
    whole = newest.read_bytes()
    save_file({**load_file(newest), "a.lora_A.weight": torch.zeros(())}, newest)
    assert [line for line in verify("lineage") if WEIGHTS in line] == [f"{newest}: changed"]
    newest.write_bytes(whole)
    named = compact("lineage", stages=[2, 3])
    assert [stage["stage"] for stage in named["dropped"]] == [2, 3]
    assert stored() == [4]
    assert verify("lineage") == []
    assert torch.equal(stage_output("lineage", 1), here[1][0])
    done = repair("lineage", 2)
    assert done["lost"] == []
    assert stored() == [2, 4]
    assert torch.equal(stage_output("lineage", 2), here[1][1])


def test_an_earlier_adapter_is_taken_by_its_folder_and_written_apart(here, kind):
    one = Path("lineage/stages/0001-colour")
    expected = stage_output("lineage", 1)
    assert not (one / WEIGHTS).exists()
    assert "--adapter --stage 1" in (one / "README.md").read_text()
    apart = export("lineage", "apart", stage=1, adapter=True).resolve()
    head = {"head.safetensors"} if kind == "encoder" else set()
    assert {f.name for f in apart.iterdir()} == {WEIGHTS, "adapter_config.json", "README.md", *head}
    plain = PeftModel.from_pretrained(AUTO[kind].from_pretrained("base"), apart)
    assert torch.equal(output(plain, AutoTokenizer.from_pretrained("base")), expected)
    with pytest.raises(PerdureError, match="stage 0 is the base, which has no adapter"):
        export("lineage", "other", stage=0, adapter=True)
    with contextlib.chdir(one.parent):  # from within the lineage
        assert (stage_folder(one.name) / WEIGHTS).read_bytes() == (apart / WEIGHTS).read_bytes()
    statistics(one, "colour-train.jsonl", "measured", limit=2)
    settings = one / "adapter_config.json"
    text = settings.read_text()
    settings.write_text(text.replace('"lora_alpha": 4', '"lora_alpha": 400'))
    with pytest.raises(PerdureError, match=r"adapter_config.json: is not as it was written"):
        load_whole(str(one), silent)
    settings.write_text(text)
    assert torch.equal(whole_output(str(one)), whole_output("apart"))
    with pytest.raises(PerdureError, match=r"lineage/stages/0001-colour brings its own settings"):
        init("next", load_config({"adapter": {"r": 8}}), one)


def whole_output(name: str) -> torch.Tensor:
    """The output of a checkpoint that a verb takes by its folder."""
    base = load_whole(name, silent)
    return output(base.network, base.tokenizer)


def test_where_an_arrival_is_does_not_depend_on_who_stores_its_adapter(here):
    rows = {k: v for k, v in here[0].items() if k not in ("tasks", "method")}
    init("into", load_config(rows))
    learn("into", task("animal"))
    arrived = merge(["into", "lineage/stages/0001-colour"], name="colour", test="colour-test.jsonl")
    assert arrived["place"] == {"path": "../lineage/stages/0001-colour"}
    assert arrived["alone"] == Lineage("lineage").at(1)["scores"]["colour"]
    merge(["into"], undo=2)
    assert torch.allclose(stage_output("into"), stage_output("into", 1), atol=1e-4)


def test_a_reader_finds_what_another_process_has_just_put_into_a_later_stage(here):
    lineage = Lineage("lineage")
    lineage.ledger = lineage.ledger[:3]  # as it was read before the third stage was learned
    assert lineage.contained == {"stages/0001-colour": ["stages/0002-animal"]}
    for number in (1, 2):
        assert lineage.file(lineage.at(number), WEIGHTS)
        base_at(lineage, lineage.at(number))


def test_a_reader_takes_what_is_deleted_before_it_is_read_out_of_a_later_stage(here, monkeypatch):
    lineage = Lineage("lineage")
    lineage.write_contained(lineage.at(2))

    def file_hash(path: Path) -> str:
        if path.name == WEIGHTS:
            path.unlink()  # by another process
        return hashing.file_hash(path)

    monkeypatch.setattr(lineage_module, "file_hash", file_hash)
    file = lineage.file(lineage.at(2), WEIGHTS)
    assert file is not None
    assert file.parent != lineage.folder(lineage.at(2))


def test_verify_lists_a_link_beside_the_adapter_that_contains_the_others(here):
    newest = Path("lineage/stages/0003-count")
    (newest / "own").symlink_to("nowhere")
    lines = verify("lineage")
    assert [line for line in lines if "is a symbolic link" in line]
    assert sum(f"{WEIGHTS}: missing" in line for line in lines) == 2


def test_verify_reads_a_ledger_again_that_has_grown_meanwhile(here, monkeypatch):
    counts = iter([3, 4])

    class Then(Lineage):
        """The lineage before its newest stage was learned, and then as it is."""

        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            self.ledger = self.ledger[: next(counts)]

    monkeypatch.setattr(verify_module, "Lineage", Then)
    assert verify("lineage") == []
    assert list(counts) == []


def test_repair_goes_back_to_a_stage_with_a_file_of_its_adapter(here):
    second, newest = (Path("lineage/stages") / name for name in ("0002-animal", "0003-count"))
    (newest / "scores.json").unlink()
    Path("count-train.jsonl").rename("away.jsonl")
    (second / WEIGHTS).mkdir()
    with pytest.raises(PerdureError, match="is a folder, where a file belongs"):
        repair("lineage")
    (second / WEIGHTS).rmdir()
    (second / WEIGHTS).write_bytes(b"damaged")
    done = repair("lineage")
    assert f"{second / WEIGHTS}: was damaged and is deleted" in done["restored"][0]
    assert done["stage"] == 2
    assert (second / WEIGHTS).exists()
    assert torch.equal(stage_output("lineage"), here[1][1])


def test_an_adapter_that_cannot_be_cut_out_is_not_deleted(here):
    revert("lineage", 2)
    file = Path("lineage/stages/0002-animal") / WEIGHTS
    settings = file.with_name("adapter_config.json")
    text = settings.read_text()
    settings.write_text("{}")
    revert("lineage", 1)
    assert file.exists()
    settings.write_text(text)
    configure("lineage", **{"gate.forgetting": 1.0})
    assert not file.exists()


@pytest.mark.slow
def test_what_is_damaged_is_cut_out_or_learned_again(here):
    second = Path("lineage/stages/0002-animal")
    revert("lineage", 2)
    (second / WEIGHTS).write_bytes(b"damaged")
    (second / "method.safetensors").write_bytes(b"damaged")
    assert len(verify("lineage")) == 2
    done = repair("lineage")
    assert f"{second / WEIGHTS}: restored from the adapter of a later stage" in done["restored"]
    assert any("method.safetensors: learned again" in line for line in done["restored"])
    assert verify("lineage") == []
    revert("lineage", 3)
    shutil.move(second, "lineage/stages/0002-other")
    assert "renamed back" in repair("lineage")["restored"][0]
    newest = Path("lineage/stages/0003-count") / WEIGHTS
    (second / WEIGHTS).unlink(missing_ok=True)
    newest.write_bytes(b"damaged")
    assert sum(f"{WEIGHTS}: missing" in line for line in verify("lineage")) == 2
    done = repair("lineage")
    assert (done["lost"], done["stage"]) == ([], 3)
    assert verify("lineage") == []
    assert torch.equal(stage_output("lineage", 3), here[1][2])
