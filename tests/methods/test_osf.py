"""OSF: what a matrix does along its largest directions stays, and the rest learns."""

import re

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from perdure.config import Config
from perdure.errors import PerdureError
from perdure.methods import make
from perdure.methods.osf import Directions, matrices
from perdure.models.base import Base
from perdure.models.classifier import Classifier
from perdure.seeds import forked
from tiny import KINDS, tiny_model, tiny_tokenizer
from train.engine import STRICT, engine, learned, tiny_base


pytestmark = pytest.mark.own


def layers(model):
    """The matrices of the layers, told by their names alone."""
    return {
        name: p
        for name, p in model.named_parameters()
        if p.ndim == 2 and re.search(r"\.\d+\.", name) and "relative_attention_bias" not in name
    }


def directions(weight, share):
    """U_h, S_h, V_h of a matrix in float64, from the eigenvectors of W W^T and W^T W."""
    weight = weight.detach().double().clone()
    k = int(share * min(weight.shape))
    squares, left = torch.linalg.eigh(weight @ weight.T)
    s = squares[-k:].sqrt()
    return left[:, -k:], s, weight.T @ left[:, -k:] / s


def invariant(trainer, share=0.5):
    """W V_h = U_h S_h and U_h^T W = S_h V_h^T of the weights at the start of the task."""
    held = {name: (p, directions(p, share)) for name, p in layers(trainer.base.model).items()}
    assert held

    def check():
        for p, (u, s, v) in held.values():
            w = p.detach().double()
            torch.testing.assert_close(w @ v, u * s, atol=1e-5, rtol=0)
            torch.testing.assert_close(u.T @ w, (v * s).T, atol=1e-5, rtol=0)

    return check


@pytest.mark.parametrize("kind", KINDS)
def test_the_held_directions_stay_and_the_rest_of_every_matrix_learns(kind, tmp_path):
    base = tiny_base(kind, 0.1, whole=True)
    trainer = engine(base, {"osf": {"share": 0.25}}, tmp_path)
    check = invariant(trainer, 0.25)
    before = {name: p.detach().clone() for name, p in layers(base.model).items()}
    assert any(p.shape[0] != p.shape[1] for p in before.values())  # grouped queries, feed-forward
    trainer.learn()
    trainer.methods[0].end_task(base.model)
    check()
    for name, p in layers(base.model).items():
        assert (p - before[name]).norm() > 0.1 * before[name].norm()  # at a rate of 0.01


@pytest.mark.parametrize("leak", ["adam", "decay"])
def test_projected_gradients_alone_would_leak(leak, tmp_path, monkeypatch):
    base = tiny_base("causal", whole=True)
    training = {"adam": {"weight_decay": 0.0}, "decay": {"optim": "sgd", "weight_decay": 0.5}}[leak]
    trainer = engine(base, "osf", tmp_path, **{**STRICT, **training})
    check = invariant(trainer)
    monkeypatch.setattr(trainer.methods[0], "_project", lambda: None)
    trainer.learn()
    with pytest.raises(AssertionError):
        check()


def test_under_sgd_without_decay_projected_gradients_are_enough(tmp_path, monkeypatch):
    base = tiny_base("causal", whole=True)
    trainer = engine(base, "osf", tmp_path, **{**STRICT, "optim": "sgd", "weight_decay": 0.0})
    check = invariant(trainer)
    monkeypatch.setattr(trainer.methods[0], "_project", lambda: None)
    trainer.learn()
    check()


def test_clipping_counts_what_may_move(tmp_path):
    base = tiny_base("causal", whole=True)
    trainer = engine(base, "osf", tmp_path)
    rows = trainer.train_dataset[:8]
    for p, gradient in zip(trainer.parameters, trainer.side_gradient(rows, 0), strict=True):
        p.grad = gradient
    held = {name: (p.grad.clone(), directions(p, 0.5)) for name, p in layers(base.model).items()}
    free = {n: p.grad.clone() for n, p in base.model.named_parameters() if n not in held}
    trainer.methods[0].edit_gradients(base.model)
    after = {name: p.grad for name, p in base.model.named_parameters()}
    for name, (before, (u, _, v)) in held.items():
        off = torch.eye(len(u)) - u @ u.T, torch.eye(len(v)) - v @ v.T
        closed = off[0] @ before.double() @ off[1]
        torch.testing.assert_close(after[name].double(), closed, atol=1e-6, rtol=1e-4)
        assert after[name].norm() < 0.95 * before.norm()
    assert all(torch.equal(after[name], before) for name, before in free.items())


def test_the_free_part_of_a_change_by_hand():
    directions = Directions.of(
        torch.diag(torch.tensor([3.0, 2.0, 1.0])), 1
    )  # e1 is held on both sides
    change = torch.arange(1.0, 10.0).view(3, 3)
    closed = torch.tensor([[0.0, 0.0, 0.0], [0.0, 5.0, 6.0], [0.0, 8.0, 9.0]])
    torch.testing.assert_close(directions.project(change), closed)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers_are_held_but_no_head_and_nothing_tied(kind):
    model = tiny_base(kind, whole=True).model
    assert {id(p) for p in matrices(model)} == {id(p) for p in layers(model).values()}


def test_tied_heads_biases_and_conv1d(tmp_path):
    with forked(0):
        vocabulary = len(tiny_tokenizer("causal"))
        settings = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        model = GPT2LMHeadModel(settings)
    assert model.lm_head.weight is model.transformer.wte.weight
    tied = model.transformer.wte.weight.detach().clone()
    base = Base("tiny", "causal", model, tiny_tokenizer("causal"))
    trainer = engine(base, "osf", tmp_path)
    assert len(trainer.methods[0].constrained) == 8  # four Conv1D a layer
    check = invariant(trainer)
    trainer.learn()
    check()
    assert not torch.equal(model.transformer.wte.weight, tied)
    assert model.transformer.h[0].mlp.c_fc.bias.abs().max() > 0


def test_a_shared_layer_is_held_once():
    model = tiny_model("causal")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    assert len(matrices(model)) == 13


def test_weights_in_bf16_hold_to_their_precision():
    weight = torch.nn.Parameter(torch.randn(16, 8).bfloat16())
    method = make("osf")[0]
    method.constrained = [(weight, Directions.of(weight.detach(), 4))]
    u, s, v = directions(weight.float(), 0.5)
    weight.data += 0.5 * torch.randn_like(weight)
    method.on_optimizer_step(None, None, None)
    assert weight.dtype == torch.bfloat16
    torch.testing.assert_close(weight.detach().double() @ v, u * s, atol=0.05, rtol=0.02)


@pytest.mark.parametrize(
    ("keywords", "stage", "rank"),
    [
        ({}, 1, 0),
        ({}, 2, 16),
        ({"first": True}, 1, 16),
        ({"share": 0.99}, 3, 31),
        ({"tasks": 4}, 1, 0),
        ({"tasks": 4}, 2, 8),
        ({"tasks": 4}, 4, 24),
        ({"tasks": 4}, 9, 24),
    ],
)
def test_how_many_directions_are_held(keywords, stage, rank, tmp_path):
    base = tiny_base("causal", whole=True)
    context = engine(base, "sequential", tmp_path).methods[0].context
    context.stage = stage
    method = make({"osf": keywords})[0]
    method.begin_task(base.model, context)
    ranks = [
        directions.left.shape[1] for p, directions in method.constrained if p.shape == (32, 32)
    ]
    assert ranks == ([rank] * 4 if rank else [])  # two of attention a layer


def test_what_other_methods_do_in_between_is_taken_back_at_the_end(tmp_path):
    base = tiny_base("causal", whole=True)
    every = {"share": 1.0}
    trainer = engine(base, [{"k_fpf": every}, {"fpf": every}, "osf"], tmp_path)
    check = invariant(trainer)
    trainer.learn()
    with pytest.raises(AssertionError):
        check()  # a burst of k_fpf came after the last step
    for method in trainer.methods:
        method.end_task(base.model)
    check()


def test_it_takes_whole_weights_alone():
    method = make("osf")[0]
    method.check(Config(adapter=None), "causal")
    with pytest.raises(PerdureError, match="set adapter=null"):
        method.check(Config(), "causal")


def test_at_a_share_of_one_the_matrices_stay_and_the_head_learns(tmp_path):
    before, _ = learned("encoder", {"osf": {"share": 1.0}}, tmp_path / "a", rows=4)
    after, trainer = learned("encoder", {"osf": {"share": 1.0}}, tmp_path / "b")
    for name in layers(trainer.base.model):
        torch.testing.assert_close(before[name], after[name], atol=1e-5, rtol=0)
    assert isinstance(trainer.base.model, Classifier)
    assert not torch.equal(before["weight"], after["weight"])


@pytest.mark.parametrize("keywords", [{"share": -0.1}, {"share": 1.1}, {"tasks": 0}])
def test_a_wrong_share_is_told(keywords):
    with pytest.raises(PerdureError, match="osf: needs"):
        make({"osf": keywords})
