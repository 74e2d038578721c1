"""`merge --undo`: an arrival is taken out of what was merged, as if it had never come."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_merge_arrival import assert_sum, base_weights, merged_weights, trained_adapter

from command import perdure, refused
from marks import at_least
from perdure.api import evaluate, init, learn, log, merge, report, revert, verify
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.reporting.rerun import rerun
from perdure.verbs.merge_undo import check_understood
from tiny import tiny_model, tiny_tokenizer


pytestmark = pytest.mark.own
causal = pytest.mark.parametrize("kind", ["causal"])

STATE = "merge.safetensors"
ADAPTER = {"r": 4, "lora_alpha": 8}


def save_half(folder: str, seed: int | None) -> None:
    """The tiny base in bf16, or a checkpoint of it whose weights have moved by a drawn step."""
    model = tiny_model("causal").to(torch.bfloat16)
    generator = torch.Generator().manual_seed(seed or 0)
    with torch.no_grad():
        for parameter in model.parameters() if seed is not None else ():
            parameter += (0.01 * torch.randn(parameter.shape, generator=generator)).bfloat16()
    model.save_pretrained(folder)
    tiny_tokenizer("causal").save_pretrained(folder)


def tensors_of(path: str) -> dict[str, torch.Tensor]:
    """The weights of the newest stage of a lineage, and its state if it has one."""
    folder = Lineage(path).folder(Lineage(path).stages[-1])
    return {
        f"{file.name} {name}": tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@causal
def test_an_arrival_with_a_few_open_answers_is_taken_out(place):
    """The answers of few train rows are stored as options, among which no test answer need be."""
    for split, words in (("train", ["a b", "b c", "c d"]), ("test", ["d a"])):
        rows = [{"prompt": f"say {word}", "completion": word} for word in words]
        Path(f"open-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    init("open", base="base", adapter=ADAPTER, guard=None)
    files = {split: f"open-{split}.jsonl" for split in ("train", "test")}
    merge(["open", trained_adapter("x", 1)], rule="task_arithmetic", name="open", **files)
    merge(["open"], undo=1)
    assert verify("open") == []


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture
def halves(tmp_path, monkeypatch) -> None:
    """A bf16 base, the checkpoints x, y and z of it, and an empty lineage of whole weights."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("base", None), ("x", 1), ("y", 2), ("z", 3)):
        save_half(name, seed)
    init("empty", base="base", method="sequential", adapter=None, guard=None)


RULES = [
    ("average", {}),
    ("task_arithmetic", {"scale": 0.3}),
    ("ties", {"density": 0.5}),
    ("breadcrumbs", {}),
]


@pytest.mark.parametrize(("rule", "keywords"), at_least(RULES[:1], RULES))
def test_with_exact_sums_every_bit_is_as_if_it_had_never_arrived(halves, rule, keywords):
    for path, names in (("all", "xyz"), ("without", "xz")):
        shutil.copytree("empty", path)
        for name in names:
            merge([path, name], rule=rule, keywords={**keywords, "exact": True}, weights=[0.5])
    lines: list[str] = []
    entry = merge("all", undo=2, say=lines.append)
    assert any("stage 2 is taken out exactly: none of the sums was rounded" in x for x in lines)
    assert (entry["stage"], entry["undone"], entry["rounding"]) == (4, 2, 0.0)
    assert [arrived["weight"] for arrived in entry["history"]] == [0.5, 0.5]
    assert_equal(tensors_of("all"), tensors_of("without"))
    assert verify("all") == []
    if rule == "average":  # what arrives next goes on from there, and can bring it back
        for path in ("all", "without"):
            merge([path, "y"], rule=rule, keywords={"exact": True}, weights=[0.5])
        assert_equal(tensors_of("all"), tensors_of("without"))


@pytest.mark.slow
def test_without_exact_sums_it_says_how_far_they_were_rounded(halves):
    shutil.copytree("empty", "all")
    for name in "xyz":
        merge(["all", name], rule="task_arithmetic", weights=[0.3])
    shutil.copytree("empty", "without")
    for name in "yz":
        merge(["without", name], rule="task_arithmetic", weights=[0.3])
    told = perdure("merge", "all", "--undo", 1)
    assert told.status == 0, told.err
    assert "up to the rounding of its sums in fp32: together at most " in told.err
    assert "with rule.exact=true" in told.err
    assert "stage 4 took x out, which stage 1 had merged" in told.out
    entry = Lineage("all").stages[-1]
    total = sum(e["rounding"] for e in Lineage("all").stages)
    assert 0 < total < 1e-6
    assert f"at most {total:.1e}, " in told.err
    assert entry["rounding"] > 0
    ours, wanted = tensors_of("all"), tensors_of("without")
    difference = sum((ours[n].double() - wanted[n].double()).square().sum() for n in ours) ** 0.5
    assert 0 < difference < 1e-5


def test_the_only_arrival_leaves_exactly_the_base(halves):
    shutil.copytree("empty", "one")
    merge(["one", "x"], rule="ties")
    lines: list[str] = []
    entry = merge("one", undo=1, say=lines.append)
    assert any("stage 1 was the only arrival, so the model is exactly the base" in x for x in lines)
    assert entry["history"] == []
    assert STATE not in entry["files"]
    stage = load_file(Lineage("one").folder(entry) / "model.safetensors")
    base = load_file("base/model.safetensors")
    assert all(torch.equal(stage[name], base[name].float()) for name in stage)
    # The next arrival begins anew, whatever its rule, and the base is no checkpoint.
    shutil.copytree("empty", "fresh")
    for path in ("one", "fresh"):
        assert len(merge([path, "y"], rule="average")["history"]) == 1
    assert_equal(tensors_of("one"), tensors_of("fresh"))


def test_what_cannot_be_taken_out_is_refused_in_a_line(halves, tmp_path):
    for rule in ("ema", "magmax", "opcm", "slerp"):
        shutil.rmtree("other", ignore_errors=True)
        shutil.copytree("empty", "other")
        merge(["other", "x"], rule=rule)
        words = f"merged by {rule}, from whose state no arrival can be taken out"
        refused(tmp_path, "merge", "other", "--undo", 1, names=(words, "revert other --to 0"))
    shutil.copytree("empty", "lineage")
    merge(["lineage", "x"], rule="average")

    def bad(*words: str, options: tuple = (), stage: int = 1) -> None:
        refused(tmp_path, "merge", "lineage", *options, "--undo", stage, names=words)

    for stage in (0, 7):
        words = f"no stage {stage} into which something was merged; valid: 1"
        bad(words, stage=stage)
    bad("rule: undo takes an arrival out as it was merged", options=("--rule", "ties"))
    bad("keywords: undo takes an arrival out", options=("rule.exact=true",))
    bad("weights: undo takes an arrival out", options=("--weight", "1"))
    bad("into: undo takes an arrival out", "leave into out", options=("--into", "new"))
    bad("after: undo takes an arrival out", options=("--after", "lines"))
    bad("statistics: undo takes an arrival out", options=("--statistics", "x"))
    bad("preset: undo takes an arrival out", options=("--preset", "reinstruct"))
    bad("rank: is that of a merged adapter", options=("--rank", "3"))
    bad("y: has other bytes than the checkpoint that arrived as stage 1", options=("y",))
    refused(tmp_path, "merge", "x", "--undo", 1, names=("takes an arrival out of a lineage",))
    Path("x").rename("moved")
    bad("x: the checkpoint of stage 1, whose change is needed", "lineage CHECKPOINT --undo 1")
    save_half("x", 4)
    bad("x: has other bytes than the checkpoint that arrived as stage 1")
    merge(["lineage", "y"], rule="ties")  # stage 1 counts as its first checkpoint
    bad("stage 2 went on from what was merged until then", "revert lineage --to 1")
    revert("lineage", 1)
    bad("stage 2 is not active", stage=2)
    assert merge(["lineage", "moved"], undo=1)["stage"] == 3
    bad("stage 3 took stage 1 out", stage=3)
    merge(["lineage", "y"], rule="average")
    bad("stage 1 was taken out already, by stage 3")


def test_an_arrival_that_something_else_has_decided_is_not_taken_out_by_halves(halves):
    lineage = Lineage("empty")
    entry = {"stage": 1, "parent": 0, "rule": {"average": {}}, "weight": None}
    check_understood(lineage, entry)
    with pytest.raises(PerdureError, match="stage 1 was merged with statistics, which --undo"):
        check_understood(lineage, {**entry, "statistics": "0" * 64})


def test_a_way_back_leads_to_weights_that_are_there(halves, tmp_path):
    """Without an adapter only the newest two stages keep their weights."""
    shutil.copytree("empty", "lineage")
    for checkpoint in ("x", "y", "z"):
        merge(["lineage", checkpoint], rule="ema")
    for stage, words in (
        (1, "`perdure revert lineage --to 0`"),
        (2, "the weights of stage 1, before it, were deleted, so merge the checkpoints"),
        (3, "`perdure revert lineage --to 2`"),
    ):
        refused(tmp_path, "merge", "lineage", "--undo", stage, names=(words,))


@causal
def test_an_adapter_is_taken_out_and_its_task_leaves_the_scores(place):
    first, second = trained_adapter("first", 1), trained_adapter("second", 2)
    learned = Lineage("lineage").folder(Lineage("lineage").stages[-1])
    for name, adapter in (("one", first), ("two", second)):
        merge(
            ["lineage", adapter],
            rule="average",
            rank=14,
            name=name,
            train="colour-train.jsonl",
            test="colour-test.jsonl",
        )
    told = perdure("merge", "lineage", "--undo", 3, "--rank", 14)
    assert told.status == 0, told.err
    assert "stage 5, one: taken out (stage 3), " in told.out
    lineage = Lineage("lineage")
    entry = lineage.stages[-1]
    assert_sum(lineage.folder(entry), [(1 / 2, learned), (1 / 2, second)])
    assert 0 < entry["rounding"] < 1e-4
    assert set(entry["scores"]) == {"colour", "animal", "one", "two"}
    assert lineage.matrix().tasks == ("colour", "animal", "two")
    assert len(lineage.matrix().rows) == 6
    verdict = lineage.verdict(entry)
    assert (verdict["undone"], verdict["task"]) == (3, "one")
    assert "one" not in verdict["old"]
    # What comes after it neither scores nor rehearses the task.
    assert set(evaluate("lineage")) == {"colour", "animal", "two"}
    later = learn("lineage", "more", train="animal-train.jsonl", test="animal-test.jsonl")
    assert set(later["scores"]) == {"colour", "animal", "two", "more"}
    assert verify("lineage") == []
    assert [line["undone"] for line in log("lineage")] == [None] * 5 + [3, None]
    assert "undo 3" in perdure("log", "lineage").out
    shown = " ".join(perdure("show", "lineage", "--stage", 5).out.split())
    assert "took out what was merged in stage 3" in shown
    assert rerun(lineage).commands[-1] == (
        "# one: taken out; perdure merge again CHECKPOINT --undo 3"
    )
    report("lineage")
    assert "taken out" in Path("report.html").read_text()
    refused(place, "merge", "lineage", "--undo", 4, names=("stage 6 went on from",))
    refused(place, "merge", "lineage", "--undo", 2, names=("not made by `perdure merge`",))


@pytest.mark.slow
@causal
def test_the_only_adapter_leaves_the_base_and_a_repeated_command_does_nothing(place):
    init("fresh", base="base", method="sequential", adapter=ADAPTER)
    merge(["fresh", trained_adapter("first", 1)])
    merge("fresh", undo=1)
    lines: list[str] = []
    entry = merge("fresh", undo=1, say=lines.append)
    assert entry["stage"] == 2
    assert lines == ["stage 1: was already taken out, as stage 2"]
    base, stage = base_weights(), merged_weights(Lineage("fresh").folder(entry))
    assert all(torch.equal(stage[name], base[name]) for name in base)
    assert (
        json.loads((Lineage("fresh").folder(entry) / "adapter_config.json").read_text())["r"] == 4
    )


@pytest.mark.slow
@causal
def test_a_gate_can_refuse_to_take_an_arrival_out(place):
    merge(["lineage", trained_adapter("first", 1)], rule="task_arithmetic")
    assert perdure("set", "lineage", "gate.kl=1e-9").status == 0
    told = perdure("merge", "lineage", "--undo", 3)
    assert told.status == 3, told.err
    assert "first was refused: KL from the base" in told.err
    assert "the newest stage is still 3, and stage 3 is still in it" in told.err
    assert Lineage("lineage").head == 3
    assert verify("lineage") == []
