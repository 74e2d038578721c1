"""What rules merge by beside the weights: Fisher informations and Gram matrices of checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from command import perdure, refused, tree, write_rows
from merging.models import (
    measured_for,
    save_adapter,
    save_encoder,
    save_expert,
    save_statistics,
    weights_of,
)
from perdure.api import init, learn, merge, pack, statistics, verify
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.merging.rule import Arrival, Arrived, Place, Rule
from perdure.merging.rules import make
from perdure.merging.rules.regmean import Regmean
from perdure.merging.statistics import inputs_of
from perdure.models.base import load_tokenizer
from perdure.models.stage_files import read_head, write_head
from tiny import save_tiny
from zoo import make as make_base


pytestmark = pytest.mark.own
WEIGHTS = "model.safetensors"
ROWS = [
    {"prompt": "red is", "completion": " one two"},
    {"prompt": "the cat is", "completion": " up"},
    {"prompt": "blue", "completion": " down left right"},
]


@pytest.fixture(scope="module")
def measured_experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    save_tiny("causal", folder / "base")
    for seed, name in enumerate("xyz", start=1):
        save_expert(folder / name, seed)
    write_rows(folder / "rows.jsonl", ROWS)
    return folder


@pytest.fixture
def desk(measured_experts, tmp_path, monkeypatch):
    shutil.copytree(measured_experts, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def tensors(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).double() for _ in range(count)]


def folded(
    rule: Rule, taus: list[Tensor], measured: list[Tensor], weights=None, transposed=False
) -> Tensor:
    """The merged task vector of a matrix, without files."""
    state, weights = {}, weights or [None] * len(taus)
    for tau, one, weight in zip(taus, measured, weights, strict=True):
        arrival = Arrival(
            weight=weight, shape=tuple(tau.shape), transposed=transposed, statistic=one
        )
        state = rule.arrive(state, tau, arrival)
    return rule.merged(state, [Arrived(weight, 1.0) for weight in weights])


# --- the rules -----------------------------------------------------------------------------------


def test_fisher_is_the_weighted_mean_of_each_element():
    taus = tensors(3, 4, 5)
    informations = [tau.square() for tau in tensors(3, 4, 5, seed=1)]
    weights = [1.0, 0.5, 2.0]
    masses = [w * (f + 1e-6) for w, f in zip(weights, informations, strict=True)]
    wanted = sum(m * t for m, t in zip(masses, taus, strict=True)) / sum(masses)
    rule = make("fisher", {"exact": True})
    torch.testing.assert_close(folded(rule, taus, informations, weights), wanted)


def test_equal_informations_give_the_average_and_none_elsewhere_the_only_one():
    taus = tensors(2, 4, 5)
    rule = make("fisher", {"exact": True})
    equal = folded(rule, taus, [torch.ones(4, 5).double()] * 2)
    torch.testing.assert_close(equal, (taus[0] + taus[1]) / 2)
    zero = torch.zeros(4, 5).double()
    torch.testing.assert_close(folded(rule, taus, [zero, zero]), (taus[0] + taus[1]) / 2)
    only = folded(rule, taus, [torch.ones(4, 5).double(), zero])
    torch.testing.assert_close(only, taus[0], atol=1e-5, rtol=1e-5)
    assert not torch.equal(only, taus[0])


def test_regmean_of_linear_regressions_is_the_joint_least_squares():
    """Each checkpoint is the least-squares solution of its own rows; the merged one of all rows."""
    generator = torch.Generator().manual_seed(3)
    counts, taus, grams, rows, targets = (30, 50, 20), [], [], [], []
    for count in counts:
        x = torch.randn(count, 6, generator=generator).double()
        y = torch.randn(count, 4, generator=generator).double()
        taus.append(torch.linalg.lstsq(x, y).solution.T)
        grams.append(x.T @ x / count)
        rows.append(x)
        targets.append(y)
    joint = torch.linalg.lstsq(torch.cat(rows), torch.cat(targets)).solution.T
    rule = make("regmean", {"alpha": 1.0, "ridge": 0.0})
    weights = [float(count) for count in counts]  # the statistics are means over rows
    torch.testing.assert_close(folded(rule, taus, grams, weights), joint)
    turned = folded(rule, [tau.T for tau in taus], grams, weights, transposed=True)
    torch.testing.assert_close(turned, joint.T)
    assert not torch.allclose(folded(make("regmean"), taus, grams, weights), joint, rtol=1e-3)


def test_the_off_diagonal_of_a_gram_matrix_is_reduced():
    """With alpha 0, each input is a regression of its own: the mean weighted by its square."""
    taus, inputs = tensors(2, 3, 4), tensors(2, 9, 4, seed=1)
    grams = [x.T @ x for x in inputs]
    rule = make("regmean", {"alpha": 0.0, "ridge": 0.0})
    squares = [gram.diagonal() for gram in grams]
    wanted = (taus[0] * squares[0] + taus[1] * squares[1]) / (squares[0] + squares[1])
    torch.testing.assert_close(folded(rule, taus, grams), wanted)


def test_where_no_row_has_inputs_regmean_is_the_average():
    taus = tensors(2, 3, 4)
    inputs = tensors(2, 9, 4, seed=1)
    for x in inputs:
        x[:, 2] = 0.0
    grams = [x.T @ x for x in inputs]
    traces = [gram.trace() for gram in grams]
    merged = folded(make("regmean", {"alpha": 1.0}), taus, grams)
    mean = (taus[0] * traces[0] + taus[1] * traces[1]) / sum(traces)
    torch.testing.assert_close(merged[:, 2], mean[:, 2])
    with pytest.raises(PerdureError, match="regmean: the Gram matrices of a layer have no inverse"):
        folded(make("regmean", {"alpha": 0.0, "ridge": 0.0}), taus, grams)
    merged = folded(make("regmean"), taus, [torch.zeros(4, 4).double()] * 2)
    torch.testing.assert_close(merged, (taus[0] + taus[1]) / 2)


@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_one_checkpoint_gives_itself_and_an_arrival_is_taken_back(name):
    rule = make(name, {"exact": True})
    taus = tensors(2, 5, 5)
    inputs = tensors(2, 9, 5, seed=1)
    measured = [x.T @ x for x in inputs] if name == "regmean" else [t.square() for t in taus]
    torch.testing.assert_close(folded(rule, taus[:1], measured[:1]), taus[0])
    torch.testing.assert_close(folded(rule, [taus[0]] * 3, [*measured, measured[0]]), taus[0])
    arrivals = [Arrival(shape=(5, 5), statistic=one) for one in measured]
    first = rule.arrive({}, taus[0], arrivals[0])
    state = rule.undo(rule.arrive(first, taus[1], arrivals[1]), taus[1], arrivals[1])
    torch.testing.assert_close(state, first)


def test_only_matrices_of_linear_layers_have_inputs():
    assert inputs_of(Place("w", (3, 5), "matrix")) == 5
    assert inputs_of(Place("w", (3, 5), "matrix", transposed=True)) == 3
    for place in (Place("w", (3, 5), "embedding"), Place("w", (2, 3, 5), "matrix")):
        assert inputs_of(place) == 0
        assert Regmean().shape_of("gram", place) == (0, 0)


# --- measuring -----------------------------------------------------------------------------------


def test_the_information_is_the_mean_square_of_the_gradient_of_drawn_labels(desk):
    """Drawing labels many times gives what the sum over all labels gives."""
    rows = write_rows(desk / "one.jsonl", [{"prompt": "red is", "completion": " up"}] * 200)
    result = statistics("x", rows, "out", limit=200)
    assert (result["kind"], result["rows"], len(result["sha256"])) == ("fisher", 200, 64)
    measured = load_file("out/statistics.safetensors")
    assert measured.keys() == weights_of("x").keys()
    model = AutoModelForCausalLM.from_pretrained("x").eval()
    ids = load_tokenizer("x")("red is up")["input_ids"]
    end = load_tokenizer("x").eos_token_id
    batch = torch.tensor([ids if ids[-1] == end else [*ids, end]])
    name, total = "lm_head.weight", 0.0
    log_p = model(batch).logits[0, -3:-1].log_softmax(-1)  # of the completion and its end
    for position in log_p:
        for label in position:
            (g,) = torch.autograd.grad(label, model.lm_head.weight, retain_graph=True)
            total = total + label.exp().detach() * g.square()
    # Labels of two positions are drawn apart, so their gradients have no product on average. Of
    # 200 draws, the sum over a matrix has an error of a few per cent.
    assert abs(measured[name].sum() / total.sum() - 1) < 0.15
    about = json.loads(Path("out/statistics.json").read_text())
    mean = torch.cat([t.double().flatten() for t in measured.values()]).mean().item()
    assert abs(about["mean"] / mean - 1) < 1e-6


def test_gram_matrices_are_the_mean_products_of_the_inputs(desk):
    told = perdure("statistics", "x", "rows.jsonl", "out", "--rule", "regmean")
    assert told.status == 0, told.err
    assert "out: gram of 14 tensors on 3 rows; give it to perdure merge with" in told.out
    measured = load_file("out/statistics.safetensors")
    assert all("_proj" in name for name in measured)
    assert len(measured) == 14
    model = AutoModelForCausalLM.from_pretrained("x").eval()
    tokenizer, seen = load_tokenizer("x"), []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0][0])
    )
    for row in ROWS:
        ids = tokenizer(f"{row['prompt']} {row['completion']}")["input_ids"]
        model(torch.tensor([[*ids, tokenizer.eos_token_id]]))
    x = torch.cat(seen).double()
    gram = measured["model.layers.1.mlp.down_proj.weight"].double()
    assert json.loads(Path("out/statistics.json").read_text())["tokens"] == len(x)
    torch.testing.assert_close(gram, x.T @ x / len(x), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rule", ["fisher", "regmean"])
def test_measuring_again_gives_the_same_bytes_and_adapters_and_lineages_are_measured(rule, desk):
    for out in ("one", "two"):
        statistics("x", "rows.jsonl", out, rule=rule)
    assert tree(Path("one")) == tree(Path("two"))
    save_adapter("adapter", 1, target_modules=["q_proj", "up_proj"])
    statistics("adapter", ROWS, "of-adapter", rule=rule)
    merge(["adapter"], base="base", into="whole", full=True)
    statistics("whole", ROWS, "of-whole", rule=rule)
    one, other = (load_file(f"of-{name}/statistics.safetensors") for name in ("adapter", "whole"))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    init("lineage", base="base", method="sequential", adapter=None)
    learn("lineage", "task", train=ROWS, training={"max_steps": 1})
    statistics("lineage", ROWS, "of-lineage", rule=rule)
    result = merge(
        ["adapter", "lineage"],
        rule,
        base="base",
        into="out",
        statistics=["of-adapter", "of-lineage"],
    )
    assert len(result["checkpoints"][0]["statistics"]) == 64


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_other_architectures_are_measured_and_merged(name, desk):
    """Transposed layers, and an encoder with a decoder."""
    make_base(name, desk / "other")
    auto = AutoModelForCausalLM if name == "gpt2" else AutoModelForSeq2SeqLM
    for seed, expert in enumerate(("p", "q")):
        model = auto.from_pretrained("other")
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        shutil.copytree("other", expert)
        model.save_pretrained(expert)
    rows = [
        {"prompt": "red is", "completion": " alpha"},
        {"prompt": "the cat", "completion": " two"},
    ]
    for rule in ("fisher", "regmean"):
        folders = [f"{expert}-{rule}" for expert in ("p", "q")]
        for expert, folder in zip(("p", "q"), folders, strict=True):
            statistics(expert, rows, folder, rule=rule)
        merge(["p", "q"], rule, base="other", into=f"out-{rule}", statistics=folders)
    measured = load_file("p-regmean/statistics.safetensors")
    assert set(load_file("p-fisher/statistics.safetensors")) == set(weights_of("other"))
    mean = {n: (weights_of("p")[n] + weights_of("q")[n]) / 2 for n in weights_of("p")}
    for tensor, weights in weights_of("out-regmean").items():
        assert torch.allclose(weights, mean[tensor], atol=1e-6) == (tensor not in measured), tensor
    if name == "gpt2":
        assert measured["transformer.h.0.mlp.c_fc.weight"].shape == (32, 32)


def test_encoders_are_measured(tmp_path, monkeypatch):
    """Against the gradient of each possible answer, and the inputs of the first layer."""
    monkeypatch.chdir(tmp_path)
    save_encoder("x", 1, labels=["up", "down"])
    row = {"prompt": "the red cat is", "completion": "up"}
    for rule in ("fisher", "regmean"):
        measured = statistics("x", [row], rule, rule=rule)
        assert measured["rows"] == 1
    model = AutoModel.from_pretrained("x", add_pooling_layer=False).eval()
    _, weight, bias = read_head(Path("x"))
    ids = torch.tensor([load_tokenizer("x")(row["prompt"])["input_ids"]])
    outputs = model(ids, output_hidden_states=True)
    log_p = (weight @ outputs.last_hidden_state[0].mean(0) + bias).log_softmax(-1)
    names = [name for name, _ in model.named_parameters()]
    of_answers = [
        torch.autograd.grad(log_p[label], [*model.parameters()], retain_graph=True)
        for label in (0, 1)
    ]
    found = load_file("fisher/statistics.safetensors")
    assert set(found) == set(names) == set(weights_of("x")) - {"weight", "bias"}
    assert any(
        all(
            torch.allclose(found[name], gradient.square(), rtol=1e-4, atol=1e-10)
            for name, gradient in zip(names, gradients, strict=True)
        )
        for gradients in of_answers  # the answer is drawn
    )
    inputs = outputs.hidden_states[0][0].double()
    gram = load_file("regmean/statistics.safetensors")[
        "encoder.layer.0.attention.self.query.weight"
    ]
    torch.testing.assert_close(gram.double(), inputs.T @ inputs / len(inputs), rtol=1e-5, atol=1e-6)


def test_the_pooler_of_an_encoder_has_no_information(tmp_path, monkeypatch):
    """No answer depends on it, so its Fisher information is zero."""
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "the red cat is", "completion": "up"}
    experts = []
    for seed in (1, 2):
        save_encoder(f"x{seed}", seed, labels=["up", "down"])
        experts.append(f"pooled{seed}")
        shutil.copytree(f"x{seed}", experts[-1])
        AutoModel.from_pretrained(f"x{seed}").save_pretrained(experts[-1])
    folders = [statistics(e, [row], f"of-{e}")["statistics"] for e in experts]
    for folder in folders:
        assert not load_file(f"{folder}/statistics.safetensors")["pooler.dense.weight"].any()
    merge(experts, "fisher", base=experts[0], into="out", statistics=folders)
    pooled = [weights_of(expert)["pooler.dense.weight"] for expert in experts]
    torch.testing.assert_close(weights_of("out")["pooler.dense.weight"], sum(pooled) / 2)


# --- merging by them -----------------------------------------------------------------------------


def test_files_are_merged_by_the_formulas(desk):
    grams = measured_for("regmean", "x", "y")["statistics"]
    merge(["x", "y"], "regmean", base="base", into="out", statistics=grams, weights=[1.0, 2.0])
    name = "model.layers.0.mlp.down_proj.weight"
    experts = [weights_of(n)[name].double() for n in ("x", "y")]
    measured = [load_file(f"{n}/statistics.safetensors")[name].double() for n in grams]
    parts = []
    for gram, weight in zip(measured, (1.0, 2.0), strict=True):
        diagonal = gram.diagonal()
        ridge = 1e-6 * diagonal.mean() * torch.eye(len(gram)).double()
        parts.append(weight * (0.9 * gram + 0.1 * diagonal.diag() + ridge))
    wanted = sum(e @ g for e, g in zip(experts, parts, strict=True)) @ torch.linalg.inv(sum(parts))
    torch.testing.assert_close(weights_of("out")[name].double(), wanted, atol=1e-6, rtol=1e-5)
    for other in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        mean = (weights_of("x")[other] + 2 * weights_of("y")[other]) / 3
        torch.testing.assert_close(weights_of("out")[other], mean, atol=1e-6, rtol=1e-5)
    informations = measured_for("fisher", "x", "y")["statistics"]
    merge(["x", "y"], "fisher", base="base", into="weighed", statistics=informations)
    masses = []
    for folder in informations:
        tensors = load_file(f"{folder}/statistics.safetensors")
        every = torch.cat([t.flatten() for t in tensors.values()]).double()
        masses.append(tensors[name].double() / every.mean() + 1e-6)
    wanted = sum(e * m for e, m in zip(experts, masses, strict=True)) / sum(masses)
    torch.testing.assert_close(weights_of("weighed")[name].double(), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rule", ["fisher", "regmean"])
def test_arrivals_in_a_lineage_are_those_of_all_at_once(rule, desk):
    folders = measured_for(rule, "x", "y", "z")["statistics"]
    init("lineage", base="base", method="sequential", adapter=None)
    for name, folder in zip("xyz", folders, strict=True):
        told = perdure("merge", "lineage", name, "--rule", rule, "--statistics", folder)
        assert told.status == 0, told.err
    entry = Lineage("lineage").stages[-1]
    about = json.loads(Path(folders[-1], "statistics.json").read_text())
    assert entry["statistics"] == about["sha256"]
    merge(["x", "y", "z"], rule, base="base", into="once", statistics=folders, dtype="float32")
    stage = Lineage("lineage").folder(entry)
    assert tree(stage)[WEIGHTS] == tree(Path("once"))[WEIGHTS]
    assert verify("lineage") == []
    words = ("its newest stage was not made by", "there are no statistics of it")
    other = ("--rule", {"fisher": "regmean", "regmean": "fisher"}[rule], "--statistics")
    folder = save_statistics("more", "x", other[1], 7)
    refused(desk, "merge", "lineage", "x", *other, folder, names=words)


def test_a_pack_has_the_statistics_of_its_checkpoint(desk):
    folders = measured_for("fisher", "x", "y")["statistics"]
    pack("x", "packed", base="base")
    merge(["x", "y"], "fisher", base="base", into="once", statistics=folders)
    merge(["packed", "y"], "fisher", base="base", into="from-pack", statistics=folders)
    assert tree(Path("from-pack"))[WEIGHTS] == tree(Path("once"))[WEIGHTS]
    words = ("packed: is a pack; measure its checkpoint",)
    refused(desk, "statistics", "packed", "rows.jsonl", "out", names=words)


# --- what is refused -----------------------------------------------------------------------------


def test_statistics_that_do_not_fit_are_refused(desk):
    folders = measured_for("fisher", "x", "y")["statistics"]

    def bad(*words: str, rule: str = "fisher", given: tuple[str, ...]) -> None:
        options = [word for folder in given for word in ("--statistics", folder)]
        arguments = ("merge", "x", "y", "--base", "base", "--into", "out", "--rule", rule, *options)
        refused(desk, *arguments, names=words)

    bad("fisher: needs statistics of x, and there are none; make them with", given=())
    bad("average: needs no statistics; leave --statistics out", rule="average", given=folders)
    bad("statistics: 1 for 2 checkpoints; give one for each", given=folders[:1])
    bad("statistics of another checkpoint than x", given=folders[::-1])
    bad("x-fisher has others", rule="regmean", given=folders)
    bad("base: no statistics.json and", given=("base", folders[1]))
    file = Path(folders[1], "statistics.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    bad("statistics.safetensors is not the file that statistics.json describes", given=folders)
    file.write_bytes(content)
    about = Path(folders[1], "statistics.json")
    about.write_text("{}")
    bad("statistics.json: does not load", given=folders)
    save_statistics(folders[1], "y", "fisher", 1)
    tensors = load_file("y/model.safetensors")
    save_file({n: t + 1 for n, t in tensors.items()}, "y/model.safetensors", {"format": "pt"})
    bad("statistics of another checkpoint than y, or its files have changed since", given=folders)


def test_what_cannot_be_measured_is_refused(desk):
    def bad(*words: str, of: tuple[object, ...] = ("x", "rows.jsonl", "out")) -> None:
        refused(desk, "statistics", *of, names=words)

    bad(
        "average: needs no statistics; those that do are fisher and regmean",
        of=(*("x", "rows.jsonl", "out", "--rule", "average"),),
    )
    bad("y: exists and is not empty", of=("x", "rows.jsonl", "y"))
    bad("limit: must be at least 1, got 0", of=("x", "rows.jsonl", "out", "--limit", 0))
    bad("max_length: must be at least 1", of=("x", "rows.jsonl", "out", "--max-length", 500))
    bad("nothing: no such folder", of=("nothing", "rows.jsonl", "out"))
    bad("no.jsonl", of=("x", "no.jsonl", "out"))
    save_tiny("encoder", desk / "encoder")
    bad("an encoder answers nothing without a head", of=("encoder", "rows.jsonl", "out"))
    save_encoder("headed", 1, labels=["up"])
    bad("rows.jsonl, row 1: 'one two' is not one of the", of=("headed", "rows.jsonl", "out"))
    shutil.copy("headed/head.safetensors", "encoder")
    shutil.copytree("encoder", "of-another")
    stored = torch.zeros(1, 16)
    write_head(["up"], stored, torch.zeros(1), Path("of-another"))
    bad("of-another: its head is of another model", of=("of-another", "rows.jsonl", "out"))


def test_no_statistics_are_written_of_weights_that_are_not_finite(desk):
    tensors = weights_of("x")
    name = "model.layers.0.input_layernorm.weight"
    tensors[name] = tensors[name] * float("nan")
    save_file(tensors, "x/model.safetensors", {"format": "pt"})
    for rule in ("fisher", "regmean"):
        with pytest.raises(PerdureError, match="are infinite or not numbers"):
            statistics("x", ROWS, "out", rule=rule)
    assert not Path("out").exists()
