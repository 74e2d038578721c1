"""Weights that are learned on rows by Frank-Wolfe steps."""

import shutil
from pathlib import Path

import pytest
import torch
from torch.func import functional_call
from transformers import AutoModel, AutoModelForCausalLM

from command import perdure, refused, tree, write_rows
from merging.models import merged_by_peft, save_adapter, save_encoder, save_expert, weights_of
from perdure.api import init, merge, verify
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.merging.heads import head_of
from perdure.merging.rule import Arrived
from perdure.merging.rules import make
from perdure.merging.rules.frank_wolfe import FrankWolfe
from perdure.models.base import load_tokenizer
from perdure.models.stage_files import write_head
from tiny import save_tiny


pytestmark = pytest.mark.own
WEIGHTS = "model.safetensors"
ROWS = [
    {"prompt": "red is", "completion": " one two"},
    {"prompt": "the cat is", "completion": " up"},
]


def ids_and_labels(row: dict[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of a row with its end, and the labels, of which the prompt has none."""
    tokenizer = load_tokenizer("base")
    prompt, completion = (tokenizer(row[key])["input_ids"] for key in ("prompt", "completion"))
    ids = torch.tensor([[*prompt, *completion, tokenizer.eos_token_id]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    return ids, labels


def loss_of(model, weights=None) -> torch.Tensor:
    """The mean cross-entropy of all labels of the rows."""
    total, count = torch.zeros(()), 0
    for row in ROWS:
        ids, labels = ids_and_labels(row)
        outputs = functional_call(model, weights, (ids,)) if weights else model(ids)
        log_p = outputs.logits[0, :-1].log_softmax(-1)
        kept = labels[0, 1:] != -100
        total = total - log_p[kept].gather(1, labels[0, 1:][kept][:, None]).sum()
        count += int(kept.sum())
    return total / count


@pytest.fixture(scope="module")
def made_learners(tmp_path_factory):
    """`good` was trained on the rows, `bad` was moved the other way, and `x` is drawn."""
    folder = tmp_path_factory.mktemp("learners")
    save_tiny("causal", folder / "base")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        model = AutoModelForCausalLM.from_pretrained("base")
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        for name, sign in (("good", 1.0), ("bad", -2.0)):
            shutil.copytree("base", name)
            with torch.no_grad():
                for own, parameter in model.named_parameters():
                    parameter.copy_(before[own] + sign * (parameter - before[own]))
            model.save_pretrained(name)
        save_expert("x", 1)
    write_rows(folder / "rows.jsonl", ROWS)
    return folder


@pytest.fixture
def bench(made_learners, tmp_path, monkeypatch):
    shutil.copytree(made_learners, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_the_steps_are_those_of_frank_wolfe():
    """On (w - 3/10)^2, and where the loss only falls or only rises."""
    rule = FrankWolfe(steps=5)
    weight, trials = rule.search(lambda w: ((w - 0.3) ** 2, 2 * (w - 0.3)))
    wanted = [0.0, 1.0, 1 / 3, 1 / 6, 1 / 2, 1 / 3]  # the last is measured as well
    assert [trial.weight for trial in trials] == pytest.approx(wanted)
    assert weight == pytest.approx(1 / 3)
    # The steps of 1 and 2/3 end where the loss is larger than without the checkpoint.
    weight, trials = FrankWolfe(steps=2).search(lambda w: (abs(w - 0.1), w - 0.1))
    assert [trial.weight for trial in trials] == pytest.approx([0.0, 1.0, 1 / 3])
    assert weight == 0.0
    weight, trials = rule.search(lambda w: (-w, -1.0))
    assert (weight, [trial.weight for trial in trials]) == (1.0, [0.0, 1.0])
    weight, trials = rule.search(lambda w: (w, 1.0))
    assert (weight, len(trials)) == (0.0, 1)


def test_the_loss_falls_as_fast_as_the_algorithm_promises():
    """L(w_k) - L* <= 2 C / (k + 2), with C = 2, the curvature of (w - a)^2 on [0, 1]."""
    for a in (0.0, 0.1, 0.45, 0.77, 1.0):
        _, trials = FrankWolfe(steps=60).search(lambda w, a=a: ((w - a) ** 2, 2 * (w - a)))
        for k, trial in enumerate(trials[1:], start=1):
            assert trial.loss <= 2 * 2 / (k + 2) + 1e-12
            vertex = 1.0 if trial.slope < 0 else 0.0
            assert (trial.weight - vertex) * trial.slope >= 0  # the duality gap


def test_the_shares_are_a_point_of_the_simplex():
    rule = make("frank_wolfe")
    shares = rule.coefficients([Arrived(weight, 1.0) for weight in (1.0, 0.5, 0.25)])
    assert shares == [0.375, 0.375, 0.25]
    shares = rule.coefficients([Arrived(weight, 1.0) for weight in (0.5, 0.0, 0.5)])
    assert shares == [0.25, 0.0, 0.5]


def test_an_encoder_is_asked_among_the_labels_of_a_row(tmp_path, monkeypatch):
    """Its loss and slope, by autograd; "up" is chosen among the labels of both experts."""
    monkeypatch.chdir(tmp_path)
    save_tiny("encoder", Path("base"))
    labels = {"x": ["up", "down"], "y": ["red", "blue", "up"]}
    for seed, (name, own) in enumerate(labels.items()):
        save_encoder(name, seed, labels=own)
    heads = {name: head_of(Path(name)) for name in labels}
    rows = [
        {"prompt": "the cat is", "completion": "down"},
        {"prompt": "one two", "completion": "red"},
        {"prompt": "the dog is", "completion": "up"},
    ]
    among = [["up", "down"], ["red", "blue", "up"], ["up", "down", "red", "blue"]]
    head = {**heads["x"], **heads["y"], "up": (heads["x"]["up"] + heads["y"]["up"]) / 2}
    result = merge(
        ["x", "y"], "frank_wolfe", base="base", into="out", rows=rows, keywords={"steps": 2}
    )
    model = AutoModel.from_pretrained("base", add_pooling_layer=False).eval()
    tokenizer = load_tokenizer("base")
    merged = dict(model.state_dict())
    for number, search in enumerate(result["searches"]):
        expert = weights_of("xy"[number])
        for trial in search:
            w = torch.tensor(trial["weight"], requires_grad=True)
            mixed = {n: merged[n] + w * (expert[n] - merged[n]) for n in merged}
            losses = []
            for row, choices in zip(rows, among, strict=True):
                ids = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
                mean = functional_call(model, mixed, (ids,)).last_hidden_state[0].mean(0)
                logits = torch.stack([head[own][:-1] @ mean + head[own][-1] for own in choices])
                losses.append(-logits.log_softmax(-1)[choices.index(row["completion"])])
            loss = torch.stack(losses).mean()
            (slope,) = torch.autograd.grad(loss, w)
            assert trial["loss"] == pytest.approx(loss.item(), rel=1e-5)
            assert trial["slope"] == pytest.approx(slope.item(), rel=1e-3, abs=1e-5)
        weight = result["checkpoints"][number]["weight"]
        merged = {n: merged[n] + weight * (expert[n] - merged[n]) for n in merged}
    assert head_of(Path("out")).keys() == head.keys()
    save_tiny("encoder", Path("bare"), seed=3)
    save_encoder("z", 5, labels=["left"])
    with pytest.raises(PerdureError, match="no checkpoint has the head of an encoder"):
        merge(["bare", "base"], "frank_wolfe", base="base", into="no", rows=rows)
    with pytest.raises(PerdureError, match="row 2: 'red' is not one of the answers"):
        merge(["x", "z"], "frank_wolfe", base="base", into="no", rows=rows)
    save_encoder("wide", 4, labels=["up"])
    write_head(["up"], torch.zeros(1, 16), torch.zeros(1), Path("wide"))
    for rule in ("frank_wolfe", "average"):
        given = rows if rule == "frank_wolfe" else None
        with pytest.raises(PerdureError, match="wide: its head is of another model"):
            merge(["x", "wide"], rule, base="base", into="no", rows=given)
    assert not Path("no").exists()


def test_a_row_whose_answer_no_task_has_is_named(tmp_path, monkeypatch):
    """The head of an arrival may know more labels than the options of its task."""
    monkeypatch.chdir(tmp_path)
    save_tiny("encoder", Path("base"))
    save_encoder("x", 1, labels=["red", "blue", "up"])
    init("lineage", base="base", adapter=None)
    options = {"name": "colours", "options": ["red", "up"], "rule": "frank_wolfe"}
    with pytest.raises(PerdureError, match="rows, row 2: 'blue' is an answer of no task"):
        merge(
            ["lineage", "x"],
            rows=[{"prompt": "one", "completion": answer} for answer in ("red", "blue")],
            **options,
        )
    assert not Lineage("lineage").stages
    with pytest.raises(PerdureError, match=r"base: has no head\.safetensors, so that an encoder"):
        merge(["lineage", "base"], rule="average")
    with pytest.raises(
        PerdureError, match=r"base: has no head\.safetensors, and other checkpoints"
    ):
        merge(["x", "base"], rule="average", base="base", into="no")
    wide = save_encoder("wide", 2, labels=["up"])
    write_head(["up"], torch.zeros(1, 16), torch.zeros(1), wide)
    with pytest.raises(PerdureError, match="wide: its head is of another model"):
        merge(["lineage", "wide"], rule="average")


def test_loss_and_slope_are_those_of_the_interpolated_model(bench):
    """Against the derivative of the loss in the weight, by autograd through the interpolation."""
    result = merge(
        ["x", "good"], "frank_wolfe", base="base", into="out", rows=ROWS, keywords={"steps": 3}
    )
    model = AutoModelForCausalLM.from_pretrained("base").eval()
    merged = {name: weights.clone() for name, weights in weights_of("base").items()}
    for checkpoint, search in zip(("x", "good"), result["searches"], strict=True):
        expert = weights_of(checkpoint)
        for trial in search:
            w = torch.tensor(trial["weight"], requires_grad=True)
            loss = loss_of(model, {n: merged[n] + w * (expert[n] - merged[n]) for n in merged})
            (slope,) = torch.autograd.grad(loss, w)
            assert trial["loss"] == pytest.approx(loss.item(), rel=1e-5)
            assert trial["slope"] == pytest.approx(slope.item(), rel=1e-3, abs=1e-5)
        weight = result["checkpoints"][("x", "good").index(checkpoint)]["weight"]
        merged = {n: merged[n] + weight * (expert[n] - merged[n]) for n in merged}
    for name, weights in weights_of("out").items():
        torch.testing.assert_close(weights, merged[name], atol=1e-6, rtol=1e-5)


def test_what_helps_is_taken_and_what_harms_is_not(bench):
    told = perdure(
        *("merge", "bad", "good", "--base", "base", "--into", "out", "--rule", "frank_wolfe"),
        *("--rows", "rows.jsonl"),
    )
    assert told.status == 0, told.err
    assert "learning the weights takes " in told.err
    assert "the merged model is 0% of the base, 0% of bad, 100% of good" in told.out
    result = merge(["bad", "good"], "frank_wolfe", base="base", into="again", rows="rows.jsonl")
    assert [c["weight"] for c in result["checkpoints"]] == [0.0, 1.0]
    assert result["coefficients"] == [0.0, 1.0]
    losses = [trial["loss"] for trial in result["searches"][1]]
    assert losses[1] < losses[0]
    assert tree(Path("again")) == tree(Path("out"))
    for name, weights in weights_of("out").items():
        torch.testing.assert_close(weights, weights_of("good")[name], atol=1e-7, rtol=1e-6)


def test_arrivals_learn_what_all_at_once_learn(bench):
    keywords = {"steps": 4}
    init("lineage", base="base", method="sequential", adapter=None)
    for name in ("x", "good"):
        told = perdure(
            *("merge", "lineage", name, "rule.steps=4", "--rule", "frank_wolfe"),
            *("--rows", "rows.jsonl"),
        )
        assert told.status == 0, told.err
    once = merge(
        *(["x", "good"], "frank_wolfe"),
        base="base",
        into="once",
        rows="rows.jsonl",
        keywords=keywords,
        dtype="float32",
    )
    entry = Lineage("lineage").stages[-1]
    assert [a["weight"] for a in entry["history"]] == [c["weight"] for c in once["checkpoints"]]
    assert entry["coefficients"] == once["coefficients"]
    assert entry["searches"] == once["searches"][1:]
    stage = Lineage("lineage").folder(entry)
    assert tree(stage)[WEIGHTS] == tree(Path("once"))[WEIGHTS]
    assert verify("lineage") == []
    again = ("merge", "lineage", "good", "rule.steps=4", "--rule", "frank_wolfe", "--rows")
    assert "already merged, as stage 2" in perdure(*again, "rows.jsonl").err
    write_rows(bench / "other.jsonl", ROWS[:1])
    assert perdure(*again, "other.jsonl", "--json").json["stage"] == 3


def test_adapters_stay_adapters_with_the_learned_weights(bench):
    save_adapter("one", 1)
    save_adapter("two", 2)
    result = merge(["one", "two"], "frank_wolfe", into="out", rows=ROWS, keywords={"steps": 2})
    assert result["kind"] == "adapter"
    base, merged = weights_of("base"), merged_by_peft("base", "out")
    parts = [merged_by_peft("base", name) for name in ("one", "two")]
    for name, weights in merged.items():
        wanted = base[name] + sum(
            share * (part[name] - base[name])
            for share, part in zip(result["coefficients"], parts, strict=True)
        )
        torch.testing.assert_close(weights, wanted, atol=1e-5, rtol=1e-4)
    given = merge(["one", "two"], "frank_wolfe", into="given", weights=[0.5, 0.25])
    assert given["coefficients"] == [0.375, 0.25]
    init("lineage", base="base", method="sequential", adapter={"r": 3, "lora_alpha": 6})
    entry = merge(["lineage", "one"], "frank_wolfe", weights=[0.5])
    assert entry["history"][0]["weight"] == 0.5


def test_weights_that_cannot_be_learned_are_refused(bench):
    def bad(*words: str, given: tuple[object, ...]) -> None:
        arguments = ("merge", "x", "good", "--base", "base", "--into", "out", *given)
        refused(bench, *arguments, names=words)

    rule = ("--rule", "frank_wolfe")
    bad("frank_wolfe: learns the weights of checkpoints on rows; give --rows FILE", given=rule)
    bad("average: learns no weights; leave --rows out", given=("--rows", "rows.jsonl"))
    bad("a weight must be in [0, 1], got 2", given=(*rule, "--weight", "1,2"))
    bad("steps must be >= 1, got 0", given=(*rule, "rule.steps=0", "--rows", "rows.jsonl"))
    save_adapter("one", 1)
    init("lineage", base="base", method="sequential", adapter={"r": 3, "lora_alpha": 6})
    words = ("its stages are LoRA adapters, in which no weights are learned; give --weight",)
    refused(bench, "merge", "lineage", "one", *rule, "--rows", "rows.jsonl", names=words)
