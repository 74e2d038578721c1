"""Distillation of hidden states: distance from the teacher's, and where it counts."""

import pytest
import torch

from perdure.config import Config
from perdure.errors import PerdureError
from perdure.methods import make
from perdure.methods.feature_distillation import relative_distance
from perdure.train.parameters import trained
from tiny import KINDS
from train.engine import engine, tiny_base, tokenized


pytestmark = pytest.mark.own


def uneven(base):
    """Rows of unequal length, so that padding and places differ from row to row."""
    rows = tokenized(base, "colour", 4)
    rows[1] = {k: v[3:] if k == "input_ids" else v for k, v in rows[1].items()}
    if base.kind == "causal":
        rows[1]["labels"] = rows[1]["labels"][3:]
        rows[2]["labels"] = [-100] * (len(rows[2]["labels"]) - 1) + rows[2]["labels"][-1:]
    return rows


def term(trainer, rows, method=0):
    """The term of a batch, with the model as it is."""
    batch = trainer._prepare_inputs(trainer.collate(rows))
    trainer.base.model.train()
    _, outputs = trainer.task_loss(trainer.base.model, batch)
    for before in trainer.methods[:method]:
        before.extra_loss(trainer.base.model, batch, outputs)
    return trainer.methods[method].extra_loss(trainer.base.model, batch, outputs)


def begun(base, method, work, **settings):
    trainer = engine(base, method, work, **settings)
    for m in trainer.methods:
        m.on_train_begin(None, None, None, model=base.model)
    return trainer


def moved(trainer):
    with torch.no_grad():
        for p in trainer.parameters:
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))


def hidden(trainer, rows):
    """The last hidden states at the places of the answer, from the model's own outputs."""
    model, batch = trainer.base.model.eval(), trainer.collate(rows)
    inputs, labels = (batch["input_ids"], batch["attention_mask"]), batch["labels"]
    if trainer.kind == "encoder":
        h = model.backbone(*inputs).last_hidden_state
        return torch.stack([row[mask == 1].mean(0) for row, mask in zip(h, inputs[1], strict=True)])
    if trainer.kind == "causal":
        h = model.get_base_model().model(*inputs).last_hidden_state
        places = [(b, t - 1) for b, t in (labels != -100).nonzero().tolist()]
    else:
        inner = model.get_base_model()
        shifted = inner.prepare_decoder_input_ids_from_labels(labels)
        outputs = model(*inputs, decoder_input_ids=shifted, output_hidden_states=True)
        h = outputs.decoder_hidden_states[-1]
        if inner.config.scale_decoder_outputs:
            h = h * inner.config.d_model**-0.5
        torch.testing.assert_close(inner.lm_head(h), outputs.logits)
        places = (labels != -100).nonzero().tolist()
    return torch.stack([h[b, t] for b, t in places])


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_teacher_the_term_and_its_gradient_are_zero(kind, tmp_path):
    base = tiny_base(kind)
    trainer = begun(base, "feature_distillation", tmp_path)
    loss = term(trainer, uneven(base))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in trainer.parameters)
    moved(trainer)
    term(trainer, uneven(base)).backward()
    assert all(p.grad.any() for name, p in trained(base.model).items() if ".lora_" in name)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_relative_square_of_what_the_head_sees_at_the_answer(kind, tmp_path):
    base = tiny_base(kind)
    rows = uneven(base)
    trainer = begun(base, {"feature_distillation": {"strength": 3.0}}, tmp_path)
    old = hidden(trainer, rows).detach()
    moved(trainer)
    new = hidden(trainer, rows)
    closed = 3.0 * ((new - old).square().sum(1) / old.square().sum(1)).mean()
    expected = torch.autograd.grad(closed, trainer.parameters, allow_unused=True)
    loss = term(trainer, rows)
    torch.testing.assert_close(loss, closed)
    loss.backward()
    for p, g in zip(trainer.parameters, expected, strict=True):
        assert (p.grad is None) == (g is None)  # none for an encoder's head
        if g is not None:
            torch.testing.assert_close(p.grad, g)


def test_the_distance_is_relative_to_the_old_features_and_the_same_in_parts():
    new, old = torch.randn(6, 8), torch.randn(6, 8) * torch.logspace(-3, 3, 6)[:, None]
    whole = relative_distance(new, old)
    torch.testing.assert_close(relative_distance(1e3 * new, 1e3 * old), whole)  # another base
    torch.testing.assert_close(relative_distance(2 * old, old), torch.tensor(1.0))
    parts = [relative_distance(new[:2], old[:2]), relative_distance(new[2:], old[2:])]
    torch.testing.assert_close((2 * parts[0] + 4 * parts[1]) / 6, whole)
    assert relative_distance(torch.zeros(1, 2), torch.zeros(1, 2)) == 0


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_the_heads_own_weights_get_no_gradient_of_it(kind, tmp_path):
    base = tiny_base(kind, whole=True)
    trainer = begun(base, "feature_distillation", tmp_path)
    moved(trainer)
    term(trainer, uneven(base)).backward()
    none = {name for name, p in base.model.named_parameters() if p.grad is None}
    assert none == ({"lm_head.weight"} if kind == "causal" else {"weight", "bias"})


def test_another_teacher_beside_it_changes_nothing(tmp_path):
    alone = begun(tiny_base("causal"), "feature_distillation", tmp_path)
    both = begun(tiny_base("causal"), ["lwf", "feature_distillation"], tmp_path)
    for trainer in (alone, both):
        moved(trainer)
    rows = uneven(alone.base)
    assert torch.equal(term(alone, rows), term(both, rows, method=1))
    assert term(alone, rows) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_teaches_from_the_first_task_on(kind, tmp_path):
    base = tiny_base(kind)
    trainer = begun(base, {"feature_distillation": {"teacher": "base"}}, tmp_path, memory=0)
    rows = uneven(base)
    assert term(trainer, rows) > 1e-6  # the adapter is not zero
    for name, p in base.model.named_parameters():
        if "lora_B" in name:
            p.data.zero_()
    assert term(trainer, rows) == 0


def test_after_the_task_nothing_listens_any_more(tmp_path):
    base = tiny_base("causal")
    trainer = engine(base, "feature_distillation", tmp_path, rows=4)
    head = base.model.get_output_embeddings()
    trainer.learn()
    assert len(head._forward_pre_hooks) == 1
    trainer.methods[0].end_task(base.model)
    assert not head._forward_pre_hooks
    assert not trainer.methods[0].state_dict()


def test_without_an_adapter_there_is_no_base_to_switch_to(tmp_path):
    with pytest.raises(PerdureError, match="teacher previous"):
        engine(
            tiny_base("causal", whole=True), {"feature_distillation": {"teacher": "base"}}, tmp_path
        )
    with pytest.raises(PerdureError, match="strength must be >= 0"):
        make({"feature_distillation": {"strength": -1.0}})


def test_biases_that_are_trained_do_not_let_an_encoder_teach_as_the_base():
    spec = {"feature_distillation": {"teacher": "base"}}
    (base,), (previous,) = make(spec), make("feature_distillation")
    trained = Config(adapter={"bias": "lora_only"})
    with pytest.raises(PerdureError, match=r"adapter\.bias=lora_only.*teacher previous") as caught:
        base.check(trained, "encoder")
    assert "\n" not in str(caught.value)
    previous.check(trained, "encoder")
    base.check(Config(adapter={"bias": "none"}), "encoder")
    base.check(trained, "causal")  # `init` tries such an adapter
