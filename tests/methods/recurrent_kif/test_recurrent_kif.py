"""Recurrent-KIF against a slow reference, its invariants, and the faults it must not have."""

import math
from statistics import fmean

import pytest
import torch
from torch import nn

from marks import at_least
from methods.recurrent_kif.reference import SEQUENTIAL, Reference
from perdure.errors import PerdureError
from perdure.methods import keywords, make
from perdure.methods.recurrent_kif import method as method_module
from perdure.methods.recurrent_kif import presets
from perdure.methods.recurrent_kif.method import RecurrentKIF
from perdure.methods.shared import importance
from perdure.methods.shared.importance import flatten
from perdure.methods.shared.written_rows import Writer
from perdure.train.method import Method
from train.engine import (
    STRICT,
    engine,
    learned,
    same,
    stopped_and_resumed,
    tiny_base,
    tokenized,
    weights,
)


pytestmark = pytest.mark.own


CASES = [
    ("paper", {}),
    ("release", {}),
    ("paper", {"refresh": False}),
    ("release", {"fusion": {"soft": 0.25}}),
    ("release", {"quantile_over": "parameter"}),
    ("release", {"agree": True, "restore": "stage"}),
    ("lasting", {"outer_ratio": 1.25}),
    ("lasting", {"outer_batch_size": 3}),
]


@pytest.mark.parametrize(
    ("preset", "control", "kind"),
    at_least(
        [*((*case, "causal") for case in CASES), (*CASES[0], "encoder")],
        [(*case, kind) for case in CASES for kind in ("causal", "seq2seq", "encoder")],
    ),
)
def test_the_method_follows_the_slow_reference(kind, preset, control, tmp_path):
    settings = presets.RECURRENT_KIF[preset] | {"inner_steps": 4, "outer_steps": 2} | control
    base = tiny_base(kind)
    trainer = engine(base, {"recurrent_kif": settings}, tmp_path, rows=40, **SEQUENTIAL)
    trainer.learn()  # 10 steps: rounds of 4, 4 and the last of 2
    assert len(trainer.methods[0].shares) == 3
    slow = Reference(kind, 10, settings, tmp_path)
    expected = slow.learn(tokenized(tiny_base(kind), "colour", 40))
    far = sum(
        int((~torch.isclose(p, expected[n], rtol=1e-3, atol=1e-4)).sum())
        for n, p in weights(base).items()
    )
    # a score that is equal to the threshold but for rounding may change its side
    assert far <= 3


def test_the_constructor_defaults_are_the_papers_keywords():
    defaults = {k: p.default for k, p in keywords("recurrent_kif").items()}
    assert RecurrentKIF(**presets.RECURRENT_KIF["paper"]).table == RecurrentKIF().table
    del defaults["fusion"]
    assert defaults.pop("refresh")  # a control, of neither source
    assert defaults.pop("states") == "float32"  # where and how the state is kept is of neither
    assert not defaults.pop("offload")
    assert not defaults.pop("shuffled")  # a control, too
    paper = {k: v for k, v in presets.RECURRENT_KIF["paper"].items() if k != "fusion"}
    assert defaults == paper


@pytest.mark.parametrize("preset", ["paper", "release", "lasting"])
def test_a_preset_names_every_keyword_and_what_is_open_is_among_them(preset):
    of_neither = {"refresh", "shuffled", "states", "offload"}
    assert set(presets.RECURRENT_KIF[preset]) == set(keywords("recurrent_kif")) - of_neither
    assert set(presets.OPEN.get(preset, {})) <= set(presets.RECURRENT_KIF[preset])


@pytest.mark.parametrize("fusion", [{"soft": 0}, {"soft": "much"}, {"both": (1, 1)}])
def test_what_is_no_fusion_is_refused_in_one_line(fusion):
    with pytest.raises(PerdureError, match=r"^recurrent_kif: fusion") as error:
        RecurrentKIF(fusion=fusion)
    assert "\n" not in str(error.value)


def test_soft_weights_have_nothing_to_restore():
    with pytest.raises(PerdureError, match="leave out one of the two"):
        RecurrentKIF(fusion={"soft": 0.25}, restore="stage")


@pytest.mark.parametrize("written", [0, 12])
def test_with_rows_that_the_base_writes_the_first_task_has_rounds_too(written, tmp_path):
    base = tiny_base("causal")
    method = {"recurrent_kif": {"inner_steps": 4, "outer_steps": 2, "written": written}}
    trainer = engine(base, method, tmp_path, rows=40, memory=0)
    trainer.learn()
    assert len(trainer.methods[0].shares) == (3 if written else 0)


def test_a_resumed_run_takes_its_outer_steps_on_the_rows_that_were_written(tmp_path, monkeypatch):
    method = {"recurrent_kif": {"inner_steps": 4, "outer_steps": 2, "written": 12}}
    settings = {"rows": 40, "memory": 0, "checkpoint_every": 5}
    expected, _ = learned("causal", method, tmp_path, **settings)
    monkeypatch.setattr(Writer, "write", lambda *args: pytest.fail("it wrote again"))
    checkpoint = tmp_path / "checkpoint-5"
    resumed, trainer = learned("causal", method, tmp_path, resume=checkpoint, **settings)
    assert same(expected, resumed)
    assert len(trainer.methods[0].shares) == 3


@pytest.mark.filterwarnings("ignore:recurrent_kif. none of the 4 rows")
def test_a_run_whose_base_wrote_no_rows_is_resumed_without_rounds(tmp_path, monkeypatch):
    monkeypatch.setattr(method_module, "write_rows", lambda *args, **more: [])
    method = {"recurrent_kif": {"inner_steps": 3, "outer_steps": 2, "written": 4}}
    expected, _ = learned("causal", method, tmp_path / "whole", memory=0)
    resumed, _ = stopped_and_resumed("causal", method, tmp_path / "cut", 4, 2, memory=0)
    assert same(expected, resumed)


class Recorder(RecurrentKIF):
    """Writes down what it saw."""

    def begin_task(self, model, context):
        self.log = {"observed": [], "rounds": [], "rates": [], "inner_moments": []}
        return super().begin_task(model, context)

    def _observe(self, maps, beta):
        gradients = importance.flatten_gradients(self.parameters)
        self.log["observed"].append(
            (maps is self.rounds.inner, flatten(self.parameters), gradients)
        )
        super()._observe(maps, beta)

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.moments = lambda: torch.cat(
            [
                state[k].flatten().clone()
                for state in optimizer.state.values()
                for k in ("exp_avg", "exp_avg_sq")
            ]
        )
        super().on_step_end(args, state, control, optimizer=optimizer, **kwargs)

    def _outer_steps(self, inner):
        before, reached = self.moments(), flatten(self.parameters)
        super()._outer_steps(inner)
        self.log["inner_moments"].append((before, self.moments()))
        self.log["rates"].append(self.learner.optimizer.param_groups[0]["lr"])
        self.log["rounds"].append((reached, flatten(self.parameters)))


def recorded(work, kind="causal", rows=40, recorder=None, **training):
    """An engine run with a Recorder in place."""
    base = tiny_base(kind)
    trainer = engine(base, "sequential", work, rows=rows, **training)
    method = recorder or Recorder(inner_steps=4, outer_steps=2)
    method.begin_task(base.model, trainer.methods[0].context)
    method.engine = trainer
    trainer.callback_handler.callbacks[-2:-2] = [method]
    trainer.methods = [method]
    trainer.learn()
    return base, method


def test_memory_gradients_never_touch_the_inner_moments(tmp_path):
    _, method = recorded(tmp_path)
    for before, after in method.log["inner_moments"]:
        assert torch.equal(before, after)


def test_the_shared_optimizer_of_the_control_does_touch_them(tmp_path):
    shared = Recorder(inner_steps=4, outer_steps=2, outer_optimizer="shared")
    _, method = recorded(tmp_path, recorder=shared)
    assert not torch.equal(*method.log["inner_moments"][0])


def test_the_outer_optimizer_has_the_trained_weights_only_and_does_not_decay_them(tmp_path):
    base, method = recorded(tmp_path)
    groups = method.learner.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0]
    optimized = {id(p) for group in groups for p in group["params"]}
    assert optimized == {id(p) for p in base.model.parameters() if p.requires_grad}


def test_the_outer_steps_move_the_weights_from_the_first_round_on(tmp_path):
    # in the release a warm-up that is never stepped keeps the outer rate at exactly zero
    _, method = recorded(tmp_path, warmup_steps=50)
    release = Recorder(inner_steps=4, outer_steps=2, outer_schedule="constant")
    _, constant = recorded(tmp_path, recorder=release, warmup_steps=50)
    for log in (method.log, constant.log):
        assert all(rate > 0 for rate in log["rates"])
        assert all(not torch.equal(*pair) for pair in log["rounds"])


SHARES = {  # of the rate, step by step, for a task of 10 steps with 2 of warm-up
    "linear": [0, 0.5, *(k / 8 for k in range(8, 0, -1))],
    "cosine": [0, 0.5, *(0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8))],
    "constant_with_warmup": [0, 0.5, *[1] * 8],
}


@pytest.mark.parametrize("schedule", SHARES)
def test_a_round_on_memory_has_the_mean_rate_of_its_inner_steps(schedule, tmp_path):
    _, method = recorded(tmp_path, lr_scheduler_type=schedule, warmup_steps=2)
    steps = SHARES[schedule]
    means = [fmean(part) for part in (steps[:4], steps[4:8], steps[8:])]
    assert method.log["rates"] == pytest.approx([STRICT["learning_rate"] * mean for mean in means])


def test_a_rate_of_its_own_follows_the_schedule_or_is_constant(tmp_path):
    settings = {"inner_steps": 4, "outer_steps": 2, "outer_learning_rate": 0.5}
    _, follows = recorded(tmp_path, recorder=Recorder(**settings))
    assert follows.log["rates"] == pytest.approx([0.5 * share for share in (0.85, 0.45, 0.15)])
    _, constant = recorded(tmp_path, recorder=Recorder(**settings, outer_schedule="constant"))
    assert constant.log["rates"] == [0.5] * 3


@pytest.mark.parametrize("optimizer", ["own", "shared"])
def test_a_task_shorter_than_a_round_rehearses_too(optimizer, tmp_path):
    recorder = Recorder(inner_steps=8, outer_steps=2, outer_optimizer=optimizer)
    _, method = recorded(tmp_path, recorder=recorder, rows=4)  # one step
    assert [torch.equal(*pair) for pair in method.log["rounds"]] == [False]


def test_the_shared_optimizer_moves_the_weights_in_the_last_round_and_keeps_its_rate(tmp_path):
    shared = Recorder(inner_steps=4, outer_steps=2, outer_optimizer="shared")
    _, method = recorded(tmp_path, recorder=shared)
    assert not any(torch.equal(*pair) for pair in method.log["rounds"])
    # after a round the optimizer has the rate of the training's next step once more
    expected = [STRICT["learning_rate"] * share for share in (0.6, 0.2, 0.0)]
    assert method.log["rates"] == pytest.approx(expected)


class TwoRates(RecurrentKIF):
    """Trains every other weight at a tenth of the rate, and writes down the outer rates."""

    def make_optimizer(self, parameters):
        self.outer_rates = []
        first, second = {"params": parameters[::2]}, {"params": parameters[1::2], "lr": 1e-3}
        return torch.optim.AdamW([first, second], 1e-2)

    def _outer_steps(self, inner):
        super()._outer_steps(inner)
        groups = self.learner.optimizer.param_groups
        self.outer_rates.append([(len(group["params"]), group["lr"]) for group in groups])


def test_each_group_of_weights_has_an_outer_rate_of_its_own(tmp_path):
    _, method = recorded(tmp_path, recorder=TwoRates(inner_steps=4, outer_steps=2))
    half = len(method.parameters) // 2
    for rates, share in zip(method.outer_rates, (0.85, 0.45, 0.15), strict=True):
        assert [size for size, _ in rates] == [half, half]
        assert [rate for _, rate in rates] == pytest.approx([1e-2 * share, 1e-3 * share])


def test_an_outer_rate_of_zero_leaves_the_weights_where_the_inner_steps_left_them(tmp_path):
    still = Recorder(inner_steps=4, outer_steps=2, outer_learning_rate=0.0)
    _, method = recorded(tmp_path, recorder=still)
    assert len(method.log["rounds"]) == 3
    assert all(torch.equal(*pair) for pair in method.log["rounds"])


def test_importance_is_taken_before_clipping_at_the_weights_of_the_gradient(tmp_path):
    _, method = recorded(tmp_path, max_grad_norm=1e-3, gradient_accumulation_steps=2, rows=80)
    inner, weights, gradients = method.log["observed"][0]
    fresh = tiny_base("causal")
    assert inner
    assert torch.equal(weights, flatten([p for p in fresh.model.parameters() if p.requires_grad]))
    assert gradients.norm() > 0.01  # far above the clip
    assert all(g.norm() > 1e-2 for side, _, g in method.log["observed"] if not side)


def test_the_memory_gradient_is_not_divided_by_the_accumulation(tmp_path):
    def first_outer(accumulation):
        recorder = Recorder(inner_steps=1, outer_steps=1, outer_batch_size=4)
        # at this rate the weights stay where they were
        training = {"gradient_accumulation_steps": accumulation, "learning_rate": 1e-12}
        _, method = recorded(tmp_path, recorder=recorder, rows=40, **training)
        return next(g for inner, _, g in method.log["observed"] if not inner)

    torch.testing.assert_close(first_outer(1), first_outer(4))


def test_the_last_partial_round_is_fused_so_that_no_step_is_left_over(tmp_path):
    # pruning everything brings the weights back to where the task started, also after 4 + 4 + 2
    prune = {"fusion": dict.fromkeys(("both", "inner", "outer", "neither"), (0, 0))}
    base = tiny_base("causal")
    start = weights(base)
    engine(base, {"recurrent_kif": {"inner_steps": 4, **prune}}, tmp_path).learn()
    assert same(weights(base), start)


def test_a_gradient_that_is_not_finite_is_skipped_as_a_whole(tmp_path):
    class Poisoned(Recorder):
        def edit_gradients(self, model):
            if len(self.log["observed"]) == 1:
                gradient = self.parameters[0].grad
                self.parameters[0].grad = torch.full_like(gradient, float("nan"))
                before = self.rounds.inner.sensitivity.clone()
                with pytest.warns(UserWarning, match="not finite"):
                    super().edit_gradients(model)
                assert torch.equal(self.rounds.inner.sensitivity, before)
                self.parameters[0].grad = gradient
            else:
                super().edit_gradients(model)

    base, _ = recorded(tmp_path, recorder=Poisoned(inner_steps=4, outer_steps=2))
    assert all(torch.isfinite(p).all() for p in weights(base).values())


def test_a_parameter_that_gets_no_gradient_is_unimportant_and_no_trouble(tmp_path):
    base = tiny_base("causal")
    base.model.register_parameter("idle", nn.Parameter(torch.ones(5)))
    trainer = engine(base, "recurrent_kif", tmp_path, weight_decay=0.0)
    trainer.learn()
    assert torch.equal(base.model.idle, torch.ones(5))
    assert trainer.methods[0].state_dict()


def test_nothing_of_the_state_carries_a_graph_and_it_is_four_buffers_and_adam(tmp_path):
    _, trainer = learned("causal", "recurrent_kif", tmp_path)
    method = trainer.methods[0]
    n = sum(p.numel() for p in trainer.parameters)
    buffers = method.rounds.tensors()
    assert set(buffers) == {"start", "inner", "outer"}
    assert all(b.numel() == n and not b.requires_grad for b in buffers.values())
    method.end_task(trainer.model)
    state = method.state_dict()
    trained = {f"important.{n}": p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert set(state) == {"shares", *trained}
    assert all(state[n].tolist()[0] == len(state["shares"]) * p.numel() for n, p in trained.items())


def test_what_is_important_is_counted_a_parameter_and_adds_up_to_the_shares(tmp_path):
    _, trainer = learned("causal", {"recurrent_kif": {"inner_steps": 4}}, tmp_path)
    state = trainer.methods[0].state_dict()
    counted = [count for name, count in state.items() if name.startswith("important.")]
    weights, inner, outer = torch.stack(counted).sum(0).tolist()
    both, new, old, _ = state["shares"].mean(0).tolist()
    assert inner / weights == pytest.approx(both + new)
    assert outer / weights == pytest.approx(both + old)


@pytest.mark.parametrize("preset", ["paper", "release"])
def test_offloaded_states_change_no_bit(preset, tmp_path):
    keywords = presets.RECURRENT_KIF[preset] | {"inner_steps": 4, "outer_steps": 2}
    device, host = (
        learned("causal", {"recurrent_kif": keywords | {"offload": offload}}, tmp_path / str(i))
        for i, offload in enumerate((False, True))
    )
    assert same(device[0], host[0])
    assert same(*(t.methods[0].state_dict() for _, t in (device, host)))


def test_states_in_bf16_change_few_masks_and_move_the_weights_as_far(tmp_path):
    start = weights(tiny_base("causal"))
    changes, counts = [], []
    for states in ("float32", "bfloat16"):
        keywords = {"inner_steps": 4, "outer_steps": 2, "states": states}
        trained, trainer = learned("causal", {"recurrent_kif": keywords}, tmp_path / states)
        changes.append(torch.cat([(p - start[n]).flatten() for n, p in trained.items()]))
        counts.append(trainer.methods[0].shares[0])  # in the first round both have the same weights
    wide, narrow = changes
    assert (counts[0] - counts[1]).abs().max() < 0.01
    assert (wide - narrow).norm() < 0.25 * wide.norm()


def test_states_in_bf16_are_half_as_large_in_a_checkpoint(tmp_path):
    _, trainer = learned("causal", {"recurrent_kif": {"states": "bfloat16"}}, tmp_path)
    state = trainer.methods[0].rounds.tensors() | trainer.methods[0].learner.tensors()
    narrow = {name for name, tensor in state.items() if tensor.dtype == torch.bfloat16}
    assert narrow == {"inner", "outer", *(name for name in state if name[:13] == "adam.exp_avg.")}


@pytest.mark.parametrize("policy", ["keep", "reset", "scale"])
def test_the_momentum_policy_is_applied_at_a_fusion(policy, tmp_path):
    prune = dict.fromkeys(("both", "inner", "outer", "neither"), (0.25, 0))
    base = tiny_base("causal")
    keywords = {"inner_steps": 10, "fusion": prune, "momentum": policy}
    trainer = engine(base, {"recurrent_kif": keywords}, tmp_path)
    plain = engine(tiny_base("causal"), "sequential", tmp_path)
    trainer.learn()
    plain.learn()
    ours = torch.cat([s["exp_avg"].flatten() for s in trainer.optimizer.state.values()])
    theirs = torch.cat([s["exp_avg"].flatten() for s in plain.optimizer.state.values()])
    share = {"keep": 1.0, "reset": 0.0, "scale": 0.25}[policy]
    torch.testing.assert_close(ours, share * theirs, rtol=1e-4, atol=1e-9)


def test_the_shares_of_the_four_cases_are_kept_for_every_round(tmp_path):
    _, trainer = learned("causal", {"recurrent_kif": {"inner_steps": 4}}, tmp_path)
    shares = trainer.methods[0].state_dict()["shares"]
    assert shares.shape == (3, 4)
    torch.testing.assert_close(shares.sum(1), torch.ones(3))
    assert (shares[:, 0] + shares[:, 1] <= 0.2 + 1e-6).all()


def test_a_callback_can_have_the_keywords_of_a_preset():
    made = RecurrentKIF.from_preset("lasting", quantile=0.9, memory=[1])
    (ours,) = make({"recurrent_kif": {"preset": "lasting", "quantile": 0.9}})
    different = {name for name in vars(made) if vars(made)[name] != vars(ours).get(name)}
    assert different == {"memory_rows"}
    with pytest.raises(PerdureError, match="unknown preset 'lastin'; did you mean 'lasting'"):
        RecurrentKIF.from_preset("lastin")


class Doubling(Method):
    """Changes the gradients after another method has seen them."""

    family = "regularisation"

    def edit_gradients(self, model):
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad *= 2


@pytest.mark.parametrize("follows", [False, True])
def test_clipping_uses_the_norm_that_was_computed_unless_a_later_method_changes_it(
    follows, tmp_path
):
    base = tiny_base("causal")
    settings = STRICT | {"max_grad_norm": 0.05}
    trainer = engine(base, {"recurrent_kif": {"inner_steps": 4}}, tmp_path, **settings)
    if follows:
        trainer.methods = [*trainer.methods, Doubling()]
    observed, clipped = [], []
    observe, clip = RecurrentKIF._observe, trainer._clip_grad_norm

    def recorded_observe(self, maps, beta):
        observed.append(observe(self, maps, beta))
        return observed[-1]

    def recorded_clip(model):
        expected = nn.utils.get_total_norm([p.grad for p in trainer.parameters])
        norm = clip(model)
        after = nn.utils.get_total_norm([p.grad for p in trainer.parameters])
        clipped.append((trainer.gradient_norm, norm, expected, after))
        return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecurrentKIF, "_observe", recorded_observe)
        patch.setattr(trainer, "_clip_grad_norm", recorded_clip)
        trainer.learn()
    assert clipped
    for known, norm, expected, after in clipped:
        assert (known is None) == follows
        assert torch.equal(torch.as_tensor(norm), expected)
        assert after <= 0.0501 < expected
