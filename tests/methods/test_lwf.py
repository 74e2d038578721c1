"""LwF: distance from the teacher, and where it counts."""

import pytest
import torch

from perdure.config import Config
from perdure.errors import PerdureError
from perdure.methods import find, make
from perdure.methods.lwf import LwF
from perdure.models.classifier import Classifier
from perdure.train.memory import Memory
from perdure.train.method import TaskContext
from perdure.train.parameters import known_labels, trained
from tiny import KINDS
from train.engine import engine, tiny_base, tokenized


pytestmark = pytest.mark.own


def term(trainer, rows):
    """The term of a batch, with the model as it is."""
    batch = trainer._prepare_inputs(trainer.collate(rows))
    method = trainer.methods[0]
    method.on_train_begin(None, None, None, model=trainer.base.model)
    trainer.base.model.train()
    _, outputs = trainer.task_loss(trainer.base.model, batch)
    return method.extra_loss(trainer.base.model, batch, outputs)


@torch.no_grad()
def all_logits(trainer, rows):
    """What the model itself gives, in evaluation mode."""
    batch, model = trainer.collate(rows), trainer.base.model.eval()
    labels = batch.pop("labels")
    return model(**batch, **({"labels": labels} if trainer.kind == "seq2seq" else {})).logits


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_teacher_the_term_and_its_gradient_are_zero(kind, tmp_path):
    base = tiny_base(kind)
    trainer = engine(base, "lwf", tmp_path)
    loss = term(trainer, tokenized(base, "colour", 4))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in trainer.parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_tempered_divergence_over_the_places_of_the_answer(kind, tmp_path):
    base = tiny_base(kind)
    rows = tokenized(base, "colour", 4)
    trainer = engine(base, {"lwf": {"strength": 3.0, "temperature": 2.0}}, tmp_path)
    old = all_logits(trainer, rows)
    for p in trainer.parameters:
        p.data += 0.1 * torch.randn_like(p)
    new = all_logits(trainer, rows)
    mask = trainer.collate(rows)["labels"] != -100
    if kind == "causal":
        mask = torch.cat([mask[:, 1:], torch.zeros(len(mask), 1, dtype=bool)], 1)
    p, q = ((logits[mask] / 2).softmax(-1) for logits in (old, new))
    closed = 3.0 * 4 * (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(term(trainer, rows), closed, rtol=1e-4, atol=1e-6)


def test_an_encoder_is_held_to_the_labels_it_knew(tmp_path):
    base = tiny_base("encoder")
    trainer = engine(base, "lwf", tmp_path)
    trainer.methods[0].labels = torch.tensor(4)
    assert isinstance(base.model, Classifier)
    base.model.bias.data[4:] += 5.0  # of labels that the teacher did not have
    assert abs(term(trainer, tokenized(base, "colour", 4)).item()) < 1e-6
    trainer.methods[0].end_task(base.model)
    assert (
        trainer.methods[0].state_dict() == known_labels(base.model) == {"labels": torch.tensor(6)}
    )


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_the_base_teaches_from_the_first_task_on(kind, tmp_path):
    base = tiny_base(kind)
    trainer = engine(base, {"lwf": {"teacher": "base"}}, tmp_path, memory=0)
    rows = tokenized(base, "colour", 4)
    assert term(trainer, rows) > 1e-5  # the adapter is not zero
    for name, p in base.model.named_parameters():
        if "lora_B" in name:
            p.data.zero_()
    assert abs(term(trainer, rows).item()) < 1e-6


def test_an_encoder_has_no_base_that_answers(tmp_path):
    with pytest.raises(PerdureError, match="use teacher previous"):
        engine(tiny_base("encoder"), {"lwf": {"teacher": "base"}}, tmp_path)


@pytest.mark.parametrize("teacher", ["previous", "base"])
def test_the_teacher_has_no_dropout_and_the_student_is_left_as_it_was(teacher, tmp_path):
    base, answers = tiny_base("causal", dropout=0.5), []
    trainer = engine(base, ["hft", {"lwf": {"teacher": teacher}}], tmp_path)
    moving, lwf = list(trained(base.model)), trainer.methods[1]
    batch = trainer._prepare_inputs(trainer.collate(tokenized(base, "colour", 4)))
    for training in (True, False):
        base.model.train(training)
        answers.append(lwf.teacher(base.model, batch, base.kind).logits)
        assert all(module.training == training for module in base.model.modules())
    assert torch.equal(*answers)
    assert list(trained(base.model)) == moving  # what another method froze stays frozen


def test_kl_base_is_short_for_the_preset_and_its_keywords_can_be_changed():
    short, long = make("kl_base")[0], make({"lwf": {"preset": "kl_base"}})[0]
    assert (short.called, long.called) == ("kl_base", "lwf")
    assert {**vars(short), "called": None} == {**vars(long), "called": None}
    assert isinstance(short, LwF)
    assert (short.source, short.temperature, short.name) == ("base", 1.0, "lwf")
    (changed,) = make({"kl_base": {"strength": 0.5}})
    assert isinstance(changed, LwF)
    assert (changed.strength, changed.source) == (0.5, "base")
    assert [m.name for m in make(["replay", "kl_base"])] == ["replay", "lwf"]
    with pytest.raises(PerdureError, match="lwf and kl_base are the same one; name it once"):
        make(["lwf", "kl_base"])
    with pytest.raises(PerdureError, match="the same method is named twice"):
        make(["kl_base", "kl_base"])
    with pytest.raises(PerdureError, match="kl_base"):
        find("kl_bas")


def test_kl_base_needs_an_adapter_to_disable():
    with pytest.raises(PerdureError, match=r"set adapter=\{\} or teacher previous"):
        make("kl_base")[0].check(Config(adapter=None), "causal")


@pytest.mark.parametrize(
    ("keywords", "line"),
    [
        ({"strenght": 1}, "^kl_base has no keyword 'strenght'; did you mean 'strength'"),
        ({"strength": "much"}, "^kl_base: strength takes a number, got 'much'"),
        ({"strength": -1}, "^kl_base: needs strength >= 0"),
        ({"preset": "bas"}, "^kl_base: unknown preset 'bas'"),
    ],
)
def test_an_error_has_the_name_that_the_user_wrote(keywords, line):
    with pytest.raises(PerdureError, match=line):
        make({"kl_base": keywords})
    with pytest.raises(PerdureError, match=r"^kl_base: teacher base is the base"):
        make("kl_base")[0].check(Config(adapter=None), "causal")


def test_an_adapter_with_which_the_lineage_began_teaches_but_an_empty_head_does_not():
    """Its head is not taken over, so that an encoder has no old label at its first task."""
    for kind, labels, teaches in (("causal", None, True), ("encoder", 0, False)):
        method = make("lwf")[0]
        context = TaskContext("colour", 2, 3, Memory({}, 5), {}, is_newest=False, labels=labels)
        method.begin_task(tiny_base(kind).model, context)
        assert (method.teacher is not None) == teaches
