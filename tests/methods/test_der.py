"""DER: what is kept of remembered rows, when, and the gradient that it makes."""

import pytest
import torch

from perdure.errors import PerdureError
from perdure.methods import make
from perdure.train.memory import Memory
from perdure.train.method import TaskContext
from perdure.train.parameters import trained
from tiny import KINDS
from train.engine import Stop, Stopped, engine, same, tiny_base, tokenized, weights


pytestmark = pytest.mark.own
TOP = {"causal": 5, "seq2seq": 5, "encoder": 6}  # an encoder keeps all six labels


def remembered(base, name="animal", n=6):
    """Rows of unequal length and with unequal numbers of places, none twice; one is all text."""
    rows = []
    for i, row in enumerate(tokenized(base, name, n)):
        new = {**row, "input_ids": [5 + i, *row["input_ids"]]}
        if base.kind == "causal":
            new["labels"] = [-100, *row["labels"]]
        if base.kind != "encoder" and i % 2:
            new["labels"] = new["labels"] + [5 + i]
            if base.kind == "causal":
                new["input_ids"] = new["input_ids"] + [5 + i]
        rows.append(new)
    if base.kind == "causal":
        rows[1]["labels"] = rows[1]["input_ids"]
    return rows


def at_stage(trainer, stage, tasks, state=None):
    """The method begins a stage that remembers these tasks, as it does in a lineage."""
    state = {k: v.clone() for k, v in (state or {}).items()}
    context = TaskContext("colour", stage, 3 + stage, Memory(tasks, 5), state)
    method = trainer.methods[0]
    method.begin_task(trainer.base.model, context)
    return method


def begun(base, work, tasks, state=None, stage=2, **keywords):
    """In the first step of such a stage, with the gradient of its first batch."""
    trainer = engine(base, {"der": {"top_k": 5, **keywords}}, work)
    at_stage(trainer, stage, tasks, state)
    step(trainer, 0)
    return trainer


def step(trainer, number):
    trainer.state.global_step = number
    trainer.methods[0].on_step_begin(trainer.args, trainer.state, None)


def moved(trainer, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trainer.parameters:
            p += 0.1 * torch.randn(p.shape, generator=generator)


def own_logits(trainer, row):
    """The logits [places, choices] of one row by itself, with gradients, in evaluation mode."""
    model, batch = trainer.base.model, trainer.collate([row])
    labels, inputs = batch.pop("labels"), dict(batch)
    if trainer.kind == "seq2seq":
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    logits = model.eval()(**inputs).logits
    model.train()
    if trainer.kind == "encoder":
        return logits
    shift = int(trainer.kind == "causal")
    places = [t - shift for t in range(shift, labels.shape[1]) if labels[0, t] != -100]
    return logits[0, places]


def split(state):
    counts = state["places"].tolist()
    return list(zip(state["values"].split(counts), state["choices"].split(counts), strict=True))


def added(trainer):
    """What `edit_gradients` adds to the gradients."""
    before = [torch.randn_like(p) for p in trainer.parameters]
    for p, g in zip(trainer.parameters, before, strict=True):
        p.grad = g.clone()
    trainer.methods[0].edit_gradients(trainer.base.model)
    return [p.grad - g for p, g in zip(trainer.parameters, before, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_what_the_model_says_as_the_stage_begins(kind, tmp_path):
    base = tiny_base(kind, dropout=0.1)
    rows = remembered(base)
    trainer = begun(base, tmp_path, {"animal": rows})
    state = trainer.methods[0].state_dict()
    assert {k: v.dtype for k, v in state.items()} == {
        "rows": torch.int64,
        "places": torch.int64,
        "values": torch.float32,
        "choices": torch.int32,
    }
    assert len(state["rows"].unique()) == 6
    for row, (values, choices) in zip(rows, split(state), strict=True):
        logits = own_logits(trainer, row)
        assert values.shape == (len(logits), TOP[kind])
        torch.testing.assert_close(values, logits.gather(1, choices.long()), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            values, logits.sort(descending=True).values[:, : TOP[kind]], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_mean_square_over_rows_places_and_choices(kind, tmp_path):
    base = tiny_base(kind, dropout=0.1)
    rows = remembered(base)
    trainer = begun(base, tmp_path, {"animal": rows}, alpha=0.7, beta=0.0, rows=5)
    stored = dict(zip(map(id, rows), split(trainer.methods[0].state_dict()), strict=True))
    assert all(g.abs().max() < 1e-5 for g in added(trainer))  # nothing has moved yet
    moved(trainer)
    step(trainer, 3)  # in micro-batches of 4 and 1 rows
    squares = []
    for row in trainer.methods[0].context.memory.draw(15, 5):
        values, choices = stored[id(row)]
        squares.append((own_logits(trainer, row).gather(1, choices.long()) - values).square())
    mean = sum(s.sum() for s in squares) / sum(s.numel() for s in squares)
    closed = torch.autograd.grad(0.7 * mean, trainer.parameters)
    assert max(g.abs().max() for g in closed) > 1e-3
    for g, expected in zip(added(trainer), closed, strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_alone_beta_is_the_task_loss_on_a_draw_of_its_own(kind, tmp_path, monkeypatch):
    base = tiny_base(kind)
    rows = remembered(base)
    trainer = begun(base, tmp_path, {"animal": rows}, alpha=0.0, beta=0.25, rows=3)
    drawn, original = [], trainer.side_gradient
    monkeypatch.setattr(
        trainer, "side_gradient", lambda rows, *more: drawn.append(rows) or original(rows, *more)
    )
    moved(trainer)
    gradients = added(trainer)
    first, second = drawn
    assert first == trainer.methods[0].context.memory.draw(0, 3)
    assert first != second
    loss, _ = trainer.task_loss(base.model, trainer.collate(second))
    closed = torch.autograd.grad(0.25 * loss, trainer.parameters)
    for g, expected in zip(gradients, closed, strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-3, atol=2e-6)


def test_each_tasks_logits_are_those_of_the_time_when_it_had_ended(tmp_path):
    base = tiny_base("causal")
    animal, count = remembered(base), remembered(base, "count", 3)
    trainer = begun(base, tmp_path, {"animal": animal})
    first = trainer.methods[0].state_dict()
    moved(trainer)
    second = begun(base, tmp_path, {"animal": animal, "count": count}, first, 3)
    state = second.methods[0].state_dict()
    assert state.keys() == first.keys() == {"rows", "places", "values", "choices"}
    assert len(state["rows"]) == 9
    old, new = split(state)[:6], split(state)[6:]
    for (values, choices), (then, of) in zip(old, split(first), strict=True):
        assert torch.equal(values, then)
        assert torch.equal(choices, of)
    for row, (values, choices) in zip(count, new, strict=True):
        now = own_logits(trainer, row).gather(1, choices.long())
        torch.testing.assert_close(values, now, rtol=1e-4, atol=1e-5)


def test_a_method_that_changes_the_weights_before_a_task_changes_no_logits(tmp_path):
    alone = engine(tiny_base("causal"), "der", tmp_path)
    both = engine(tiny_base("causal"), ["slao", "der"], tmp_path)
    begun = weights(both.base)
    assert not same(begun, weights(alone.base))
    for trainer in (alone, both):
        trainer.methods[-1].on_step_begin(trainer.args, trainer.state, None)
    assert same(alone.methods[0].state_dict(), both.methods[1].state_dict())
    assert same(begun, weights(both.base))


def test_rows_that_changed_are_looked_at_again_and_rows_that_are_gone_are_dropped(tmp_path):
    base = tiny_base("causal")
    rows = remembered(base)
    trainer = begun(base, tmp_path, {"animal": rows})
    first = trainer.methods[0].state_dict()
    moved(trainer)
    changed = {**rows[2], "labels": [*rows[2]["labels"][:-1], -100]}
    now = [rows[4], changed, dict(rows[0])]  # another order, objects of their own
    second = begun(base, tmp_path, {"animal": now}, first, 3)
    stored, was = split(second.methods[0].state_dict()), split(first)
    assert torch.equal(stored[0][0], was[4][0])
    assert torch.equal(stored[2][0], was[0][0])
    fresh = own_logits(trainer, changed).gather(1, stored[1][1].long())
    torch.testing.assert_close(stored[1][0], fresh, rtol=1e-4, atol=1e-5)
    other = begun(base, tmp_path, {"birds": rows[:1]}, first, 3)  # the same row of another task
    assert not torch.equal(split(other.methods[0].state_dict())[0][0], was[0][0])


def test_a_row_that_is_remembered_twice_is_kept_once_and_drawn_twice(tmp_path):
    base = tiny_base("causal")
    rows = remembered(base, n=2)
    trainer = begun(base, tmp_path, {"animal": [rows[0], rows[1], dict(rows[0])]}, rows=3)
    method = trainer.methods[0]
    assert len(method.state_dict()["rows"]) == 2
    values, _ = method.logits.of(method.context.memory.draw(0, 3))
    first, second = (len(v) for v, _ in split(method.state_dict()))
    assert len(values) == 2 * first + second


def test_an_encoder_is_held_to_the_labels_it_knew(tmp_path):
    base = tiny_base("encoder")
    rows = remembered(base)
    state = {"labels": torch.tensor(4)}
    trainer = begun(base, tmp_path, {"animal": rows}, state, alpha=1.0, beta=0.0)
    method = trainer.methods[0]
    assert method.state_dict()["choices"].sort().values.tolist() == [[0, 1, 2, 3]] * 6
    base.model.bias.data[4:] += 5.0  # of labels that it did not know
    assert all(g.abs().max() < 1e-5 for g in added(trainer))
    base.model.bias.data[3] += 1.0
    bias = list(trained(base.model)).index("bias")
    closed = torch.tensor([0, 0, 0, 2 / 4, 0, 0])  # of (z_3 + 1 - z_3)^2 / 4
    torch.testing.assert_close(added(trainer)[bias], closed, atol=1e-5, rtol=0)
    method.end_task(base.model)
    assert method.state_dict()["labels"] == 6


def test_where_fewer_logits_are_kept_the_rest_does_not_count(tmp_path):
    base = tiny_base("causal")
    animal, count = remembered(base, n=2), remembered(base, "count", 2)
    first = begun(base, tmp_path, {"animal": animal}, top_k=2).methods[0].state_dict()
    tasks = {"animal": animal, "count": count}
    trainer = begun(base, tmp_path, tasks, first, 3, top_k=5, alpha=1.0, beta=0.0, rows=4)
    stored = split(trainer.methods[0].state_dict())
    assert [(c >= 0).sum(1).unique().tolist() for _, c in stored] == [[2], [2], [5], [5]]
    moved(trainer)
    squares = []
    for row, (values, choices) in zip(animal + count, stored, strict=True):
        width = 2 if row in animal else 5
        gap = own_logits(trainer, row).gather(1, choices[:, :width].long()) - values[:, :width]
        squares.append(gap.square())
    mean = sum(s.sum() for s in squares) / sum(s.numel() for s in squares)
    for g, expected in zip(
        added(trainer), torch.autograd.grad(mean, trainer.parameters), strict=True
    ):
        torch.testing.assert_close(g, expected, rtol=1e-3, atol=2e-6)


def test_a_run_that_resumes_takes_the_logits_of_its_checkpoint(tmp_path, monkeypatch):
    dead = engine(
        tiny_base("causal"), "der", tmp_path, rows=12, callbacks=[Stop(2)], checkpoint_every=1
    )
    with pytest.raises(Stopped):
        dead.learn()
    resume = tmp_path / "checkpoint-2"
    again = engine(tiny_base("causal"), "der", tmp_path, rows=12, resume=resume)
    looks = []
    monkeypatch.setattr(again, "look", looks.append)
    again.learn()
    assert not looks
    assert again.state.global_step == 3
    assert same(dead.methods[0].state_dict(), again.methods[0].state_dict())


@pytest.mark.parametrize(
    "wrong", [{"alpha": -0.1}, {"beta": -1.0}, {"top_k": 0}, {"rows": 0}], ids=str
)
def test_a_wrong_keyword_is_told(wrong):
    with pytest.raises(PerdureError, match="der: needs alpha and beta >= 0"):
        make({"der": wrong})
