"""InfLoRA: what it reads of the inputs, what its factors A may read, and how the span grows."""

import math

import pytest
import torch

from perdure.methods.inflora import second_moments
from perdure.methods.shared import adapter_bank
from perdure.methods.shared.lora import factors, layers
from perdure.methods.shared.subspace import Span, complement, grown, leading
from perdure.train.parameters import trained
from place import output
from tiny import KINDS
from train.engine import engine, tiny_base, tokenized


pytestmark = pytest.mark.own


def invariant(trainer):
    """The old adapter and A keep their bits; A reads nothing of the old span, in rows of 1/sqrt 3.

    Beyond the rows for which a direction is left, which are zero.
    """
    model, (method, *_) = trainer.base.model, trainer.methods
    frozen = {n: p for n, p in model.named_parameters() if "lora_" in n and not p.requires_grad}
    before: dict[str, torch.Tensor] = {}
    spans = dict(method.spans)

    def check():
        if not before:  # A is chosen when training begins
            before.update({n: p.detach().clone() for n, p in frozen.items()})
        assert all(torch.equal(p, before[n]) for n, p in frozen.items())
        assert not any("lora_A" in n for n in trained(model))
        for name, factor in factors(model, adapter_bank.NEW).items():
            a, (basis, outside) = factor.a.double(), spans[name]
            overlap = a - a @ basis.double() @ basis.double().mT if outside else a @ basis.double()
            assert overlap.abs().max() < 1e-5
            full = a[a.norm(dim=1) > 0]
            assert len(full) == min(len(a), 32 - basis.shape[1] if not outside else basis.shape[1])
            torch.testing.assert_close(full @ full.mT, torch.eye(len(full)).double() / 3)

    return check


def fed(base, rows, name) -> torch.Tensor:
    """What the module of that name is fed by the rows, one by one: tokens [n, inputs]."""
    module, inputs = dict(base.model.named_modules())[name], []
    hook = module.register_forward_hook(lambda m, args, out: inputs.append(args[0][0].clone()))
    for row in rows:
        output_of(base, row)
    hook.remove()
    return torch.cat(inputs).double()


@torch.no_grad()
def output_of(base, row):
    ids = torch.tensor([row["input_ids"]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if base.kind == "seq2seq":
        inputs["labels"] = torch.tensor([row["labels"]])
    return base.model.eval()(**inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_moment_is_the_mean_over_the_tokens_without_padding(kind, tmp_path):
    base = tiny_base(kind, dropout=0.1)
    trainer = engine(base, "sequential", tmp_path)
    rows = tokenized(base, "colour", 5)
    rows[1]["input_ids"] = rows[1]["input_ids"][:4]
    if kind == "causal":
        rows[1]["labels"] = rows[1]["labels"][-4:]
    moments = second_moments(trainer, dict(layers(base.model)), rows)
    assert base.model.training
    for name, moment in moments.items():
        x = fed(base, rows, name)
        torch.testing.assert_close(moment.double(), x.mT @ x / len(x), rtol=1e-4, atol=1e-6)
    if kind == "seq2seq":
        cross = next(name for name in moments if "EncDecAttention.v" in name)
        self_attention = next(
            name for name in moments if "decoder" in name and "SelfAttention.v" in name
        )
        ids, labels = (sum(len(row[key]) for row in rows) for key in ("input_ids", "labels"))
        assert (len(fed(base, rows, cross)), len(fed(base, rows, self_attention))) == (ids, labels)


def moment_of(d: int, decay: float, seed: int) -> torch.Tensor:
    """Of inputs whose directions are drawn, each weaker than the one before by `decay`."""
    drawn = torch.randn(200 + d, d, generator=torch.Generator().manual_seed(seed)).double()
    x, turn = drawn[d:], torch.linalg.qr(drawn[:d])[0]
    x = x * decay ** torch.arange(d) @ turn
    return (x.mT @ x / len(x)).float()


@pytest.mark.parametrize("threshold", [0.5, 0.98, 0.9999])
def test_the_span_grows_as_dualgpm_says(threshold):
    """Against the definition, direction by direction, in fp64."""
    d, span = 12, Span(torch.zeros(12, 0))
    used = torch.zeros(12, 12).double()  # the projection onto what is used
    ways = []
    for turn in range(4):
        moment = moment_of(d, (0.3, 0.9, 0.6, 0.8)[turn], turn)
        c = moment.double()
        rest, s, _ = torch.linalg.svd(c - used @ c)
        energy = (used @ c).square().sum()
        for direction, value in zip(rest.mT, s, strict=True):
            if energy >= threshold * (1 - 1e-12) * c.square().sum():
                break
            energy += value**2
            used += torch.outer(direction, direction)
        span = grown(span, moment, threshold)
        basis = span.basis.double()
        project = basis @ basis.mT
        if span.outside:
            project = torch.eye(d) - project
        ways.append(span.outside)
        assert span.outside == (round(used.trace().item()) > d / 2)
        assert span.basis.shape == (d, basis.shape[1])
        assert basis.shape[1] <= d / 2
        torch.testing.assert_close(
            basis.mT @ basis, torch.eye(basis.shape[1]).double(), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(project, used, atol=2e-5, rtol=0)
    assert not ways[0]
    assert ways[-1] is (threshold > 0.5)  # of the larger ones the complement is kept by now


def test_a_layer_that_is_fed_nothing_leaves_the_span_as_it_is():
    span = grown(Span(torch.zeros(6, 0)), torch.zeros(6, 6), 0.98)
    assert span.basis.shape == (6, 0)
    assert complement(span.basis).shape == (6, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_holds_the_leading_directions_of_what_is_new(kind, tmp_path):
    base = tiny_base(kind)
    trainer = engine(base, "inflora", tmp_path, rows=12)
    method = trainer.methods[0]
    before = {name: fed(base, trainer.train_dataset, name) for name in method.a}
    method.on_train_begin(None, trainer.state, None, model=base.model)
    for name, factor in factors(base.model, adapter_bank.NEW).items():
        (basis, outside), x = method.spans[name], before[name]
        used = basis.double() @ basis.double().mT
        if outside:
            used = torch.eye(len(used)) - used
        c = x.mT @ x / len(x)
        new = c - used @ c
        principal = torch.linalg.svd(new)[0][:, :4]
        a = factor.a.detach().double() * math.sqrt(3)
        # of a layer whose new inputs span fewer than four directions the last are anything
        torch.testing.assert_close(
            a.mT @ a @ new, principal @ principal.mT @ new, atol=1e-5, rtol=1e-5
        )
        assert not factor.b.any()
        assert 0 < basis.shape[1] <= 16


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_first_task_a_fresh_adapter_itself_is_the_one(kind, tmp_path):
    base = tiny_base(kind)
    for factor in factors(base.model).values():
        factor.b.data.zero_()
    before = output(base.network, base.tokenizer)
    start = {name: f.a.detach().clone() for name, f in factors(base.model).items()}
    trainer = engine(base, "inflora", tmp_path, memory=0, rows=16)
    method = trainer.methods[0]
    method.on_train_begin(None, trainer.state, None, model=base.model)
    assert torch.equal(output(base.network, base.tokenizer), before)
    chosen = {name: f.a.detach().clone() for name, f in factors(base.model).items()}
    assert not [name for name in chosen if torch.equal(chosen[name], start[name])]
    trainer.learn()
    assert all(torch.equal(f.a, chosen[name]) for name, f in factors(base.model).items())
    assert all(f.b.any() for f in factors(base.model).values())
    method.end_task(base.model)
    assert base.peft.peft_config["default"].r == 4
    assert all(f.a.requires_grad for f in factors(base.model).values())
    state = method.state_dict()
    assert {name.partition(".")[0] for name in state} <= {"rank", "used", "free"}
    assert len(state) == 1 + len(chosen)


def test_what_a_new_task_learns_cannot_be_read_from_old_inputs(tmp_path):
    """At the first layer, whose inputs no adapter changes."""
    base = tiny_base("causal")
    old, name = tokenized(base, "animal", 12), next(n for n, _ in layers(base.model))
    trainer = engine(base, {"inflora": {"threshold": 1 - 1e-9}}, tmp_path, rows=16)
    trainer.learn()
    new = factors(base.model, adapter_bank.NEW)[name]
    old_inputs, new_inputs = (
        fed(base, rows, name).float() for rows in (old, trainer.train_dataset)
    )
    shares = [(new.delta() @ x.mT).norm() / x.norm() for x in (old_inputs, new_inputs)]
    assert shares[0] < 1e-4 * shares[1]


def test_where_no_direction_is_left_a_is_zero(tmp_path):
    base = tiny_base("causal")
    trainer = engine(base, "inflora", tmp_path, rows=8)
    method = trainer.methods[0]
    free = torch.linalg.qr(torch.randn(32, 3))[0]
    method.spans = dict.fromkeys(method.a, Span(free, outside=True))
    method.on_train_begin(None, trainer.state, None, model=base.model)
    for a in method.a.values():
        assert a[3:].abs().max() == 0
        torch.testing.assert_close(a[:3] @ a[:3].mT, torch.eye(3) / 3)
        torch.testing.assert_close(a @ free @ free.mT, a.detach(), atol=1e-6, rtol=0)


def test_leading_directions_are_orthonormal_and_in_order():
    moment, space = moment_of(10, 0.7, 3), torch.linalg.qr(torch.randn(10, 6))[0]
    directions, energies = leading(moment, space)
    torch.testing.assert_close(directions.mT @ directions, torch.eye(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(space @ space.mT @ directions, directions)
    assert energies.tolist() == sorted(energies.tolist(), reverse=True)
    for direction, energy in zip(directions.mT, energies, strict=True):
        torch.testing.assert_close(
            (direction @ moment).square().sum().double(), energy, rtol=1e-3, atol=1e-6
        )
