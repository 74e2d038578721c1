"""`run` with `merge`: experts from the base are merged one after another into one model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    DistilBertConfig,
    DistilBertModel,
)

from command import perdure, refused
from marks import at_least
from perdure.api import (
    compare,
    dry_run,
    init,
    log,
    merge,
    pack,
    report,
    run,
    statistics,
    unpack,
    verify,
)
from perdure.comparison.cell import record
from perdure.config import load_config
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.merging.heads import head_of
from perdure.models.base import load_tokenizer
from perdure.reporting.rerun import rerun
from perdure.verbs import run_merged
from place import setting_for
from tiny import tiny_rows


pytestmark = pytest.mark.own

WEIGHTS, STATE, WHOLE = "adapter_model.safetensors", "merge.safetensors", "model.safetensors"
HEAD = "head.safetensors"
TASKS = ("colour", "animal")
ADAPTERS = ({"target_modules": "all-linear"}, {}, None)  # all linear layers, with the pooler's


@pytest.fixture
def setting(tmp_path, monkeypatch) -> dict:
    monkeypatch.chdir(tmp_path)
    made = {**setting_for("causal", tmp_path, n=16), "base": "base", "max_length": 64}
    return {**made, "mode": "per_task", "adapter": {"r": 4, "lora_alpha": 8}, "guard": None}


def expert(path: str, number: int) -> Path:
    lineage = Lineage(f"{path}-experts")
    return lineage.folder(lineage.stages[number - 1])


def test_every_expert_is_learned_from_the_base_and_arrives_in_one_model(setting):
    lineage = run({**setting, "merge": {"rule": "task_arithmetic", "scale": 0.5}}, lineage="m")
    assert [entry["verb"] for entry in lineage.stages] == ["merge", "merge"]
    assert lineage.matrix().tasks == TASKS
    assert lineage.matrix().learned_at == (1, 2)
    known = [[score is not None for score in row] for row in lineage.matrix().rows]
    assert known == [[True, True], [True, True], [True, True]]
    plain = run(setting, lineage="plain")
    for number, entry in enumerate(plain.stages, start=1):
        found = Lineage("m-experts").stages[number - 1]["files"]
        assert found[WEIGHTS] == entry["files"][WEIGHTS]
    init("by-hand", config=load_config({**setting, "mode": "sequential", "tasks": None}))
    for number, name in enumerate(TASKS, start=1):
        files = {split: f"{name}-{split}.jsonl" for split in ("train", "test")}
        entry = merge(
            ["by-hand", expert("m", number)],
            rule="task_arithmetic",
            keywords={"scale": 0.5},
            name=name,
            **files,
        )
        ours = lineage.stages[number - 1]
        for file in (WEIGHTS, STATE):
            assert ours["files"][file] == entry["files"][file]
        assert (ours["scores"], ours["history"]) == (entry["scores"], entry["history"])
    assert [verify(path) for path in ("m", "m-experts")] == [[], []]
    # The same command does nothing, and the report has one lineage.
    before = lineage.ledger
    assert run({**setting, "merge": {"rule": "task_arithmetic", "scale": 0.5}}, lineage="m")
    assert Lineage("m").ledger == before
    again = yaml.safe_load(rerun(lineage).settings)
    assert (again["mode"], again["merge"]) == (
        "per_task",
        {"rule": "task_arithmetic", "scale": 0.5},
    )
    measured = record(lineage)
    assert measured["steps"] == record(plain)["steps"] == 4
    assert measured["matrix"]["tasks"] == list(TASKS)
    runs, _ = report(".")
    assert {run.method for run in runs} >= {"per_task merged by task_arithmetic", "per_task"}
    assert not any(run.label.endswith("-experts") for run in runs)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(setting, monkeypatch):
    wanted = run({**setting, "merge": "average"}, lineage="whole")
    arrival, calls = run_merged.merge_arrival, []

    def stopped(*arguments, **more):
        calls.append(arguments[1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return arrival(*arguments, **more)

    monkeypatch.setattr(run_merged, "merge_arrival", stopped)
    with pytest.raises(KeyboardInterrupt):
        run({**setting, "merge": "average"}, lineage="m")
    assert (Lineage("m").head, Lineage("m-experts").head) == (1, 2)
    lineage = run({**setting, "merge": "average"}, lineage="m")
    assert len(calls) == 3  # the first stage was not merged again, nor learned
    assert [line["verb"] for line in log("m-experts")] == ["init", "learn", "learn"]
    assert [e["files"] for e in lineage.stages] == [e["files"] for e in wanted.stages]


@pytest.mark.slow
def test_a_rule_that_does_more_than_to_add_gives_whole_weights(setting):
    told = perdure(
        *("run", _written(setting), "lineage=m", "merge={rule: ties, density: 0.5, weight: 2}")
    )
    assert told.status == 0, told.err
    assert "animal: merged by ties, as stage 2: " in told.err
    assert "per_task merged by ties" in told.out
    merge(
        [expert("m", 1), expert("m", 2)],
        into="at-once",
        rule="ties",
        weights=[2, 2],
        keywords={"density": 0.5},
    )
    ours = load_file(Lineage("m").folder(Lineage("m").stages[-1]) / WHOLE)
    once = load_file(f"at-once/{WHOLE}")
    assert all(torch.equal(ours[name], once[name]) for name in once)
    assert "per_task" not in {line["method"] for line in log("m")}


def _written(setting: dict, name: str = "run.yaml") -> str:
    Path(name).write_text(yaml.safe_dump(setting))
    return name


def test_experts_are_learned_once_for_several_rules_and_orders(setting, monkeypatch):
    """The keyword `experts` names a lineage that has learned the tasks, in any order."""
    run(setting, lineage="shelf")
    before = (Lineage("shelf").ledger, len(list(Path("shelf").rglob("*"))))
    forth = {"rule": "task_arithmetic", "scale": 0.5}
    wanted = run({**setting, "merge": forth}, lineage="learns")
    merges = {**setting, "merge": {**forth, "experts": "shelf"}}
    estimate = dry_run(merges, lineage="m")
    assert estimate["tasks"] == []
    lineage = run(merges, lineage="m")
    assert not Path("m-experts").exists()
    assert [e["files"] for e in lineage.stages] == [e["files"] for e in wanted.stages]
    assert record(lineage)["steps"] == record(wanted)["steps"] == 4
    back = run({**merges, "tasks": setting["tasks"][::-1]}, lineage="back")
    assert back.matrix().tasks == TASKS[::-1]
    assert back.stages[0]["checkpoint"] == {
        name: Lineage("shelf").stages[1]["files"][name] for name in back.stages[0]["checkpoint"]
    }
    assert (Lineage("shelf").ledger, len(list(Path("shelf").rglob("*")))) == before
    unset = {key: value for key, value in setting.items() if key != "max_length"}
    run(unset, lineage="own-length")  # that of the base
    run({**unset, "merge": {**forth, "experts": "own-length"}}, lineage="own")
    for changes, words in (
        (
            {"seed": 3},
            "the experts in shelf were learned with other settings (seed 0 instead of 3)",
        ),
        ({"rows": {"train": 8}}, "shelf has not learned the rows of 'colour', but colour, animal"),
        ({"merge": {**forth, "experts": "shelve"}}, "shelve"),
        ({"merge": {**forth, "experts": 3}}, "experts takes the folder of a lineage, got 3"),
    ):
        with pytest.raises(PerdureError) as error:
            run({**merges, **changes}, lineage="other")
        assert words in str(error.value)
        assert not Path("other").exists()


@pytest.mark.slow
def test_whole_experts_are_merged_before_their_weights_are_dropped(setting, tmp_path):
    tasks = [*setting["tasks"]]
    for split, count in (("train", 16), ("test", 8)):
        rows = tiny_rows("colour", count, seed=len(split))
        Path(f"third-{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tasks.append({"name": "third", "train": "third-train.jsonl", "test": "third-test.jsonl"})
    whole = {**setting, "adapter": None, "tasks": tasks, "training": {"learning_rate": 1e-3}}
    lineage = run({**whole, "merge": "ema"}, lineage="m")
    assert [len(entry["history"]) for entry in lineage.stages] == [1, 2, 3]
    assert (verify("m"), verify("m-experts")) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["fisher", "regmean"])
def test_experts_are_measured_for_the_rules_that_need_it(setting, rule):
    lineage = run({**setting, "merge": rule}, lineage="m")
    parts = []
    for number, name in enumerate(TASKS, start=1):
        parts.append(f"of-{name}")
        statistics(expert("m", number), f"{name}-train.jsonl", parts[-1], rule, max_length=64)
    folders = [expert("m", number) for number in (1, 2)]
    merge(folders, into="once", rule=rule, statistics=parts, base="base")
    ours, once = (
        load_file(folder / WHOLE) for folder in (lineage.folder(lineage.stages[-1]), Path("once"))
    )
    assert all(torch.equal(ours[name], once[name]) for name in once)
    before = sorted(path.stat().st_mtime_ns for path in Path("m-experts-statistics").rglob("*"))
    run({**setting, "merge": {"rule": rule, "experts": "m-experts"}}, lineage="again")
    after = sorted(path.stat().st_mtime_ns for path in Path("m-experts-statistics").rglob("*"))
    assert before == after
    assert verify("again") == []


@pytest.mark.slow
def test_the_weights_of_experts_are_learned_on_a_few_rows_of_each_task(setting):
    lineage = run({**setting, "merge": "frank_wolfe"}, lineage="m")
    first, second = lineage.stages
    assert (len(first["searches"]), len(second["searches"])) == (1, 1)
    assert len(second["history"]) == 2
    assert (lineage.folder(second) / WHOLE).is_file()
    assert verify("m") == []


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["ties", "fisher", "regmean", "frank_wolfe"])
def test_encoders_are_merged_as_well(rule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = {**setting_for("encoder", tmp_path, n=16), "base": "base", "max_length": 64}
    lineage = run({**made, "mode": "per_task", "merge": rule}, lineage="m")
    newest = Lineage("m").folder(Lineage("m").stages[-1])
    assert (newest / WHOLE).is_file()
    assert head_of(newest).keys() == head_of(expert("m", 1)).keys() | head_of(expert("m", 2)).keys()
    assert lineage.matrix().tasks == TASKS
    assert (verify("m"), verify("m-experts")) == ([], [])
    shutil.copytree("base", "whole-base")
    AutoModel.from_pretrained("base").save_pretrained("whole-base")  # with its pooler
    pack(newest, "packed", base="whole-base")
    unpack("packed", "restored")
    for folder in (Path("packed"), Path("restored")):
        assert (folder / HEAD).read_bytes() == (newest / HEAD).read_bytes()


@pytest.mark.parametrize(
    ("rule", "adapter", "has_pooler"),
    at_least(
        [("fisher", ADAPTERS[0], False)],
        [(rule, a, p) for rule in ("ties", "fisher") for a in ADAPTERS for p in (False, True)],
    ),
)
def test_the_files_of_an_encoder_may_have_the_head_of_its_pretraining(
    rule, adapter, has_pooler, tmp_path, monkeypatch
):
    """Then its weights have a prefix there, which those of stages lack, and maybe no pooler."""
    monkeypatch.chdir(tmp_path)
    made = {**setting_for("encoder", tmp_path, n=16), "base": "base", "max_length": 64}
    config = BertConfig.from_pretrained("base")
    pretrained = (BertForPreTraining if has_pooler else BertForMaskedLM)(config)
    pretrained.save_pretrained("base")
    tensors = load_file("base/model.safetensors")
    for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    save_file(tensors, "base/model.safetensors", {"format": "pt"})  # as old files have them
    assert {name.partition(".")[0] for name in load_file("base/model.safetensors")} >= {"bert"}
    said: list[str] = []
    run(
        {**made, "mode": "per_task", "merge": rule, "adapter": adapter},
        lineage="m",
        say=said.append,
    )
    assert any("the head of its pretraining is left out" in line for line in said)
    newest = Lineage("m").folder(Lineage("m").stages[-1])
    ours = {
        name.replace("gamma", "weight").replace("beta", "bias"): tensor
        for name, tensor in load_file(newest / WHOLE).items()
    }  # saved as the base was
    assert set(ours) == set(AutoModel.from_pretrained("base").state_dict())
    assert (verify("m"), verify("m-experts")) == ([], [])
    merge([expert("m", 2), newest], into="both", rule="average", base="base")
    AutoModel.from_pretrained("both")
    pack(newest, "packed", base="base")
    unpack("packed", "restored")
    restored = load_file("restored/model.safetensors")
    assert {name for name in ours if name not in restored} == {
        name for name in ours if "pooler" in name and not has_pooler
    }
    assert all(torch.equal(tensor, ours[name]) for name, tensor in restored.items())


@pytest.mark.slow
def test_experts_are_found_on_a_base_whose_layers_peft_does_not_choose(tmp_path, monkeypatch):
    """Their run has filled in the layers; experts of another base are refused before a write."""
    monkeypatch.chdir(tmp_path)
    made = {**setting_for("encoder", tmp_path, n=16), "base": "base", "max_length": 64}
    shutil.copytree("base", "bert")
    config = DistilBertConfig(
        vocab_size=len(load_tokenizer("base")), dim=32, hidden_dim=64, n_layers=2, n_heads=4
    )
    DistilBertModel(config).save_pretrained("base")
    run({**made, "mode": "per_task", "merge": "average"}, lineage="m")
    experts = {"rule": "ties", "experts": "m-experts"}
    run({**made, "mode": "per_task", "merge": experts}, lineage="again")
    assert verify("again") == []
    for verb in (run, dry_run):
        with pytest.raises(PerdureError, match="m-experts were learned from another base, 'base'"):
            verb({**made, "mode": "per_task", "merge": experts, "base": "bert", "lineage": "no"})
    assert not Path("no").exists()


@pytest.mark.slow
def test_a_comparison_has_merged_lines(setting):
    grid = {
        **{key: value for key, value in setting.items() if key not in ("mode", "threads")},
        "grid": {"method": {"apart": "per_task", "merged": "per_task"}},
        "lines": {"merged": {"merge": {"rule": "task_arithmetic", "scale": 0.5}}},
        "baseline": "apart",
        "lineage": "grid",
    }
    compared = compare(grid)
    lines = {line["name"]: line for line in compared["lines"]}
    assert set(lines) == {"apart", "merged"}
    report("grid")


def test_settings_that_cannot_be_are_refused(setting, tmp_path):
    file = _written(setting)

    def bad(value: str, *words: str, others: tuple = ()) -> None:
        refused(tmp_path, "run", file, "lineage=m", f"merge={value}", *others, names=words)

    bad("tie", "merge: unknown rule 'tie'; did you mean 'ties'?")
    bad("{rule: ties, densty: 0.3}", "merge: ties has no keyword 'densty'; did you mean 'density'?")
    bad("{density: 0.3}", "merge: rule is missing; give one of average, ")
    bad("[ties]", "merge: takes a rule's name, or a mapping such as {rule: ties, density: 0.3}")
    bad("{rule: ties, density: 2}", "merge: ties: density must be > 0 and <= 1, got 2")
    bad("{rule: ties, weight: -1}", "merge: ties: a weight must be > 0, got -1")
    bad("{rule: opcm, weight: 1}", "merge: opcm: takes no weights; leave them out")
    bad("{rule: average, weight: much}", "merge: weight takes a number, got 'much'")
    bad("{rule: average, rank: 0}", "merge: rank must be a whole number of at least 1, got 0")
    bad("{rule: ties, rank: 4}", "merge: rank is that of a merged adapter, and ties gives whole")
    bad("frank_wolfe", "and memory.ratio is 0; raise it", others=("memory.ratio=0",))
    bad("{rule: frank_wolfe, rank: 4}", "frank_wolfe gives whole weights here; leave it out")
    bad("ties", "and the mode is sequential; set mode=per_task", others=("mode=sequential",))
    refused(tmp_path, "init", "x", "merge=ties", "base=base", names=("merge: is of `perdure run`",))
    run({**setting, "merge": "average"}, lineage="m")
    bad("ema", "merge cannot change any more, because the stages were merged by this rule")
