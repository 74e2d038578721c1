"""A task whose loss, gradient or weights are not finite stops at its step."""

import math

import pytest
import torch
from transformers import TrainerCallback

from perdure.errors import NotFiniteError
from perdure.train import trainer as trainer_module
from train.engine import engine, tiny_base, weights


STEP = 3  # at which something breaks


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def stopped(trainer) -> str:
    """The error line of a training that stops."""
    with pytest.raises(NotFiniteError) as error:
        trainer.learn()
    return str(error.value)


class AtStep(TrainerCallback):
    """Calls a function with the model at an event of one step."""

    def __init__(self, event: str, action):
        def act(args, state, control, model=None, **kwargs):
            if state.global_step + (event != "on_step_end") == STEP:
                action(model)

        setattr(self, event, act)


def poison(attribute: str, value: float):
    """A function that puts a value into the last trained weight, or into its gradient."""

    @torch.no_grad()
    def action(model):
        parameter = [p for p in model.parameters() if p.requires_grad][-1]
        getattr(parameter, attribute).view(-1)[-1] = value

    return action


@pytest.mark.parametrize(("value", "max_grad_norm"), [(math.nan, 0.0), (math.inf, 0.5)])
def test_a_gradient(value, max_grad_norm, tmp_path):
    training = {"memory": 0, "max_grad_norm": max_grad_norm}
    trainer = engine(tiny_base("causal"), "sequential", tmp_path, **training)
    step = {"count": 0}

    def edit_gradients(model):
        step["count"] += 1
        if step["count"] == STEP:
            poison("grad", value)(model)

    trainer.methods[0].edit_gradients = edit_gradients
    line = stopped(trainer)
    assert f"'': the norm of the gradient is not finite at step {STEP}, " in line
    assert trainer.state.global_step == STEP


@pytest.mark.parametrize("value", [math.nan, slow(math.inf)])
def test_a_weight(value, tmp_path):
    breaking = AtStep("on_optimizer_step", poison("data", value))
    base = tiny_base("causal")
    line = stopped(engine(base, "sequential", tmp_path, memory=0, callbacks=[breaking]))
    assert f"the norm of the weights is not finite at step {STEP}" in line
    assert "training.learning_rate, which is 0.01" in line


@pytest.mark.parametrize(("kind", "value"), [("causal", math.inf), slow("encoder", math.nan)])
def test_a_loss(kind, value, tmp_path, monkeypatch):
    training = {"memory": 0, "gradient_accumulation_steps": 2}
    trainer = engine(tiny_base(kind), "sequential", tmp_path, **training)
    calls, task_loss = [], trainer_module.task_loss

    def breaking(*args):
        loss, outputs = task_loss(*args)
        calls.append(loss)
        return (loss * value if len(calls) == 2 * STEP else loss), outputs

    monkeypatch.setattr(trainer_module, "task_loss", breaking)
    assert f"the loss is not finite at step {STEP}" in stopped(trainer)


# Methods that take steps or gradients of their own, and the rows on which they take them.
OWN_STEPS = {
    "recurrent_kif": {"inner_steps": STEP, "outer_steps": 2},
    "k_fpf": {"k": 10, "steps": 1},
    "fpf": {"steps": 2},
    "agem": {},
}


@pytest.mark.filterwarnings("ignore:recurrent_kif. skipped a gradient")
@pytest.mark.parametrize("method", ["recurrent_kif", "agem", slow("fpf"), slow("k_fpf")])
def test_a_step_on_old_rows(method, tmp_path, monkeypatch):
    base = tiny_base("causal")
    trainer = engine(base, {method: OWN_STEPS[method]}, tmp_path)
    backward_batch = trainer._backward_batch

    def breaking(batch, items, other_loss, extra):
        if trainer.state.global_step + (method == "agem") >= STEP:
            items = items * 0  # the loss is a sum that is divided by the items
        backward_batch(batch, items, other_loss=other_loss, extra=extra)

    monkeypatch.setattr(trainer, "_backward_batch", breaking)

    def whole_task():
        trainer.learn()
        trainer.methods[0].end_task(base.model)
        trainer.check_end()

    with pytest.raises(NotFiniteError) as error:
        whole_task()
    when = "at the end of the task" if method == "fpf" else f"at step {STEP}"
    assert "the loss is not finite " + when in str(error.value)


def test_what_a_method_breaks_when_the_task_ends(tmp_path):
    trainer = engine(tiny_base("causal"), "sequential", tmp_path, memory=0, max_steps=1)
    trainer.learn()
    overflow = trainer.base.model.register_forward_hook(
        lambda module, inputs, outputs: setattr(outputs, "logits", outputs.logits * math.inf)
    )
    with pytest.raises(NotFiniteError, match="at the end of the task, for its first row"):
        trainer.check_end()
    overflow.remove()
    trainer.check_end()
    poison("data", math.nan)(trainer.base.model)
    with pytest.raises(NotFiniteError, match="the norm of the weights is not finite at the end"):
        trainer.check_end()


def test_the_state_of_a_method(tmp_path):
    trainer = engine(tiny_base("causal"), "l2", tmp_path)
    state = trainer.methods[0].state_dict()
    first = next(name for name, tensor in state.items() if tensor.is_floating_point())
    state[first] = state[first] * math.nan
    trainer.methods[0].state_dict = lambda: state
    with pytest.raises(NotFiniteError, match=f"'l2.{first}'"):
        trainer_module.save_state(trainer.methods, tmp_path)


@pytest.mark.parametrize(
    ("learning_rate", "steps", "is_said"),
    [slow(1e-30, 10, True), (1e-30, 4, True), (1e-30, 2, False), slow(1e-2, 10, False)],
)
def test_a_rate_at_which_no_weight_changes_is_said(learning_rate, steps, is_said, tmp_path):
    base, lines = tiny_base("causal"), []
    before = weights(base)
    training = {"learning_rate": learning_rate, "weight_decay": 0.0, "max_steps": steps}
    trainer = engine(base, "sequential", tmp_path, memory=0, **training)
    trainer.finite.say = lines.append
    trainer.learn()
    assert len(lines) == is_said
    assert all(line.startswith("warning: : no weight has changed") for line in lines)
    unchanged = all(torch.equal(w, before[name]) for name, w in weights(base).items())
    assert unchanged == (learning_rate == 1e-30)


def test_a_new_lora_changes_only_its_zeros(tmp_path):
    base, lines = tiny_base("causal"), []
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    training = {"memory": 0, "learning_rate": 1e-30, "weight_decay": 0.0, "max_steps": 4}
    trainer = engine(base, "sequential", tmp_path, **training)
    trainer.finite.say = lines.append
    trainer.learn()
    assert any(w.any() for name, w in weights(base).items() if "lora_B" in name)
    assert len(lines) == 1
    assert "learning_rate, which is 1e-30, is too small" in lines[0]
