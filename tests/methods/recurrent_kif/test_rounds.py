"""A round in pieces against the same formulas on whole flat buffers, bit for bit."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from perdure.methods.recurrent_kif import fusion
from perdure.methods.recurrent_kif.adamw import PiecewiseAdamW
from perdure.methods.recurrent_kif.fusion import Soft
from perdure.methods.recurrent_kif.presets import RECURRENT_KIF
from perdure.methods.recurrent_kif.rounds import Rounds, table_of
from perdure.methods.shared import importance
from perdure.methods.shared.importance import flatten, flatten_gradients, unit_range


pytestmark = pytest.mark.own


CHUNK = 64  # values of a piece in these tests
BETA, BETA_UNCERTAINTY, QUANTILE = 0.55, 0.85, 0.8
# Smaller than a piece, exactly one, larger, of one value, and not contiguous.
SHAPES = [(3,), (5, 7), (64,), (1,), (33, 11), (40, 40), (2, 3), (128,)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(importance, "CHUNK_OF_A_THREAD", CHUNK)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters_of(dtype: torch.dtype) -> list[nn.Parameter]:
    tensors = [draw(*shape, seed=i).to(dtype) for i, shape in enumerate(SHAPES)]
    tensors[5] = tensors[5].t()
    assert not tensors[5].is_contiguous()
    return [nn.Parameter(tensor) for tensor in tensors]


def step(parameters: list[nn.Parameter], seed: int, bad: float | None = None) -> None:
    """Move the weights, and set other gradients; the third and the last have none in some steps."""
    for i, parameter in enumerate(parameters):
        change = draw(*parameter.shape, seed=1000 * seed + i)
        with torch.no_grad():
            parameter += (change / 50).to(parameter.dtype)
        parameter.grad = draw(*parameter.shape, seed=1000 * seed + 100 + i).to(parameter.dtype)
    for missing in (2, -1):
        if seed % 2:
            parameters[missing].grad = None
    if bad is not None:
        parameters[4].grad.view(-1)[200] = bad  # type: ignore[union-attr]


class Whole:
    """The state and the fusion of `Rounds` on whole buffers, as one writes it down first."""

    def __init__(self, parameters, table, score, momentum="keep", order=None):
        self.parameters, self.table, self.momentum = parameters, table, momentum
        self.order = order
        self.start = flatten(parameters)
        uncertain = score == "sensitivity_uncertainty"
        self.inner, self.outer = ([torch.zeros_like(self.start)] * (1 + uncertain),) * 2

    def observe(self, side: str) -> None:
        sensitivity = (flatten(self.parameters) * flatten_gradients(self.parameters)).abs()
        if not sensitivity.isfinite().all():
            return
        smooth, *uncertainty = getattr(self, side)
        smooth = torch.lerp(smooth, sensitivity, 1 - BETA)
        deviation = (sensitivity - smooth).abs()
        new = [torch.lerp(u, deviation, 1 - BETA_UNCERTAINTY) for u in uncertainty]
        setattr(self, side, [smooth, *new])

    def end_inner_steps(self) -> None:
        self.reached = flatten(self.parameters)

    def fuse(self) -> tuple[Tensor, Tensor, Tensor]:
        """The fused weights, the shares of the four cases, and the counts of each parameter."""
        scores = [torch.stack(side).prod(0) for side in (self.inner, self.outer)]
        if self.order is not None:
            scores = [side[self.order] for side in scores]
        rank = int(QUANTILE * 100) * (len(self.start) - 1) // 100
        inner, outer = (s > s.sort().values[rank] for s in scores)
        points = self.start, self.reached, flatten(self.parameters)
        if isinstance(self.table, Soft):
            difference = unit_range(scores[0]) - unit_range(scores[1])
            w = (difference / self.table.temperature).sigmoid()
            start, reached, last = points
            fused = start + w * (reached - start) + (1 - w) * (last - reached)
        else:
            fused = fusion.fuse(*points, inner, outer, self.table)
        update = self.reached - self.start
        self.kept = torch.dot(fused - self.start, update) / torch.dot(update, update)
        importance.write_back(fused, self.parameters)
        self.start, self.inner = fused, [torch.zeros_like(fused) for _ in self.inner]
        cases = [inner & outer, inner & ~outer, outer & ~inner, ~inner & ~outer]
        sizes = [p.numel() for p in self.parameters]
        counts = [
            [len(a), int(a.sum()), int(b.sum())]
            for a, b in zip(inner.split(sizes), outer.split(sizes), strict=True)
        ]
        shares = torch.stack([case.sum() for case in cases]) / len(fused)
        return fused, shares, torch.tensor(counts)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def same_maps(rounds: Rounds, whole: Whole) -> bool:
    sides = ((rounds.inner, whole.inner), (rounds.outer, whole.outer))
    pairs = [(m, w) for ours, theirs in sides for m, w in zip(ours, theirs, strict=False)]
    return all(same_bits(m, w) for m, w in pairs) and same_bits(rounds.start, whole.start)


def two_rounds(rounds, whole, parameters, others, check) -> None:
    """Two rounds of three inner and two outer steps, the same on both sides."""
    seed = 0
    for _ in range(2):
        for side in ("inner", "inner", "inner", "end", "outer", "outer"):
            if side == "end":
                rounds.end_inner_steps()
                whole.end_inner_steps()
                continue
            seed += 1
            step(parameters, seed)
            step(others, seed)
            rounds.observe(getattr(rounds, side), BETA)
            whole.observe(side)
        check(rounds.fuse(), whole.fuse())


TABLES = {
    "paper": RECURRENT_KIF["paper"]["fusion"],
    "release": RECURRENT_KIF["release"]["fusion"],
    "soft": {"soft": 0.25},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("score", ["sensitivity", "sensitivity_uncertainty"])
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("offload", [False, True], ids=["device", "host"])
def test_two_rounds_in_pieces_are_bitwise_those_on_whole_buffers(name, score, dtype, offload):
    parameters, others, table = parameters_of(dtype), parameters_of(dtype), table_of(TABLES[name])
    rounds = Rounds(parameters, table, score, QUANTILE, BETA_UNCERTAINTY, offload=offload)
    whole = Whole(others, table, score)
    assert len(rounds.pieces) > len(SHAPES)

    def check(ours, theirs):
        assert same_bits(rounds.start, theirs[0])
        assert torch.equal(ours[1], theirs[1])
        assert torch.equal(ours[2], theirs[2])
        assert same_maps(rounds, whole)
        assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))

    two_rounds(rounds, whole, parameters, others, check)


@pytest.mark.parametrize("score", ["sensitivity", "sensitivity_uncertainty"])
@pytest.mark.parametrize("name", TABLES)
def test_shuffled_scores_mask_as_many_other_weights(name, score):
    parameters, others, table = *(parameters_of(torch.float32) for _ in range(2)), TABLES[name]
    rounds = Rounds(parameters, table_of(table), score, QUANTILE, BETA_UNCERTAINTY, shuffle=1)
    assert rounds.order is not None
    n = len(rounds.start)
    assert torch.equal(rounds.order.sort().values, torch.arange(n))
    assert (rounds.order != torch.arange(n)).float().mean() > 0.9
    whole = Whole(others, table_of(table), score, order=rounds.order)
    own = parameters_of(torch.float32)
    identified = Rounds(own, table_of(table), score, QUANTILE, BETA_UNCERTAINTY)

    def check(ours, theirs):
        assert same_bits(rounds.start, theirs[0])
        assert torch.equal(ours[1], theirs[1])
        assert torch.equal(ours[2], theirs[2])

    two_rounds(rounds, whole, parameters, others, check)
    # In a first round, from the same weights, the four cases are as many as those identified.
    again = Rounds(
        others := parameters_of(torch.float32),
        table_of(table),
        score,
        QUANTILE,
        BETA_UNCERTAINTY,
        shuffle=1,
    )
    fused = []
    for one, its in ((identified, own), (again, others)):
        step(its, 2)
        one.observe(one.inner, BETA)
        one.end_inner_steps()
        step(its, 4)
        one.observe(one.outer, BETA)
        fused.append((one.fuse()[1], one.start))
    assert torch.equal(fused[0][0], fused[1][0])
    assert not torch.equal(fused[0][1], fused[1][1])


def test_with_a_quantile_of_each_parameter_scores_are_shuffled_in_it():
    parameters = parameters_of(torch.float32)
    rounds = Rounds(
        parameters,
        table_of(TABLES["paper"]),
        "sensitivity",
        QUANTILE,
        BETA_UNCERTAINTY,
        quantile_over="parameter",
        shuffle=1,
    )
    assert rounds.order is not None
    begin = 0
    for parameter in parameters:
        end = begin + parameter.numel()
        assert torch.equal(rounds.order[begin:end].sort().values, torch.arange(begin, end))
        begin = end


def test_the_share_of_the_inner_update_that_was_kept_is_that_of_whole_buffers():
    parameters, others = parameters_of(torch.float32), parameters_of(torch.float32)
    table = table_of(TABLES["release"])
    rounds = Rounds(parameters, table, "sensitivity", QUANTILE, BETA, momentum="scale")
    whole = Whole(others, table, "sensitivity")

    def check(ours, _):
        assert 0 < whole.kept < 1
        assert torch.equal(ours[0].value(), whole.kept)

    two_rounds(rounds, whole, parameters, others, check)


@pytest.mark.parametrize("score", ["sensitivity", "sensitivity_uncertainty"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_a_sensitivity_that_is_not_finite_in_one_piece_changes_no_piece(bad, score):
    parameters = parameters_of(torch.float32)
    rounds = Rounds(parameters, table_of(TABLES["paper"]), score, QUANTILE, BETA)
    step(parameters, seed=2)
    with torch.no_grad():
        parameters[4].view(-1)[200] = 100
    rounds.observe(rounds.inner, BETA)
    before = [m.clone() for m in rounds.inner if m is not None]
    step(parameters, seed=4, bad=bad)
    with pytest.warns(UserWarning, match="skipped a gradient that is not finite"):
        rounds.observe(rounds.inner, BETA)
    for old, new in zip(before, rounds.inner, strict=False):
        assert same_bits(old, new)


def test_a_weight_and_a_gradient_whose_product_would_not_be_finite_may_be_of_two_weights():
    parameters = parameters_of(torch.float32)
    rounds = Rounds(parameters, table_of(TABLES["paper"]), "sensitivity", QUANTILE, BETA)
    step(parameters, seed=2)
    with torch.no_grad():
        parameters[4].view(-1)[200] = 1e20
    parameters[0].grad.view(-1)[0] = 1e20  # type: ignore[union-attr]
    rounds.observe(rounds.inner, 0.0)
    expected = (flatten(parameters) * flatten_gradients(parameters)).abs()
    assert same_bits(rounds.inner.sensitivity, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_to_the_type_of_the_weights_is_no_movement_that_disagrees(dtype):
    """No weight moves in the inner steps of the second round, so none can be moved back."""
    parameter = nn.Parameter(draw(4000, seed=0).to(dtype))
    table = table_of({"both": [0, 1], "inner": [1, 0], "outer": [0, 1], "neither": [0, 1]})
    rounds = Rounds([parameter], table, "sensitivity", 0.0, BETA_UNCERTAINTY, agree=True)
    for inner, outer in ((0.3, 0.013), (0.0, 0.05)):
        for maps, change in ((rounds.inner, inner), (rounds.outer, outer)):
            parameter.grad = torch.ones_like(parameter)
            rounds.observe(maps, BETA)
            parameter.data += change
            if maps is rounds.inner:
                rounds.end_inner_steps()
        _, shares, _ = rounds.fuse()
    assert shares[0] > 0.99


class Largest(TorchDispatchMode):
    """The most values that a new tensor has; a view of another tensor is not new."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        old = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)]
        old += [t for a in args if isinstance(a, list | tuple) for t in a if isinstance(t, Tensor)]
        known = {tensor.untyped_storage().data_ptr() for tensor in old}
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.values = max(self.values, tensor.numel())
        return result


def test_scores_that_would_overflow_leave_the_soft_weights_finite():
    parameters = [nn.Parameter(torch.full((4,), 1.0))]
    rounds = Rounds(parameters, Soft(0.1), "sensitivity_uncertainty", 0.5, beta_uncertainty=0.55)
    for maps in (rounds.inner, rounds.outer):
        for value in (1e30, 1e38):
            parameters[0].grad = torch.tensor([value, 1.0, value, 0.0])
            rounds.observe(maps, 0.55)
    rounds.end_inner_steps()
    rounds.fuse()
    assert parameters[0].isfinite().all()


@pytest.mark.parametrize("name", TABLES)
def test_no_new_tensor_of_a_round_is_larger_than_a_piece(name, monkeypatch):
    chunk = 2**17  # above the size of a histogram
    monkeypatch.setattr(importance, "CHUNK_OF_A_THREAD", chunk)
    parameters = [nn.Parameter(draw(3 * chunk, seed=0)), nn.Parameter(draw(chunk + 5, seed=1))]
    for i, parameter in enumerate(parameters):
        parameter.grad = draw(*parameter.shape, seed=10 + i)
    table = table_of(TABLES[name])
    rounds = Rounds(parameters, table, "sensitivity_uncertainty", QUANTILE, BETA)
    with Largest() as largest:
        rounds.observe(rounds.inner, BETA)
        rounds.end_inner_steps()
        rounds.observe(rounds.outer, BETA)
        rounds.fuse()
    assert chunk <= largest.values <= 3 * chunk  # a scratch buffer has three pieces


@pytest.mark.parametrize("score", ["sensitivity", "sensitivity_uncertainty"])
def test_maps_in_bf16_are_near_and_their_fusion_moves_no_weight_further(score):
    parameters, others = parameters_of(torch.float32), parameters_of(torch.float32)
    table = table_of(TABLES["paper"])
    rounds = Rounds(
        parameters, table, score, QUANTILE, BETA_UNCERTAINTY, states=torch.bfloat16, offload=True
    )
    whole = Whole(others, table, score)
    for seed in (1, 2, 3):
        step(parameters, seed)
        step(others, seed)
        rounds.observe(rounds.inner, BETA)
        whole.observe("inner")
    smooth, *_ = whole.inner
    # Half a unit in the last of 8 bits is 2^-8 at most, of which a share BETA is left a step later.
    tolerance = 2.0**-8 / (1 - BETA)
    assert rounds.inner.sensitivity.dtype == torch.bfloat16
    torch.testing.assert_close(rounds.inner.sensitivity.float(), smooth, rtol=tolerance, atol=0)
    start = rounds.start.clone()
    scores = importance.score_of(rounds.inner, slice(None), rounds.device)
    inner_mask = importance.important(scores, QUANTILE)
    rounds.end_inner_steps()
    reached = flatten(parameters)
    step(parameters, 4)
    rounds.observe(rounds.outer, BETA)
    _, shares, _ = rounds.fuse()
    assert shares[:2].sum() == pytest.approx(0.2, abs=0.02)
    alone = inner_mask & (flatten(parameters) != start)
    error = (flatten(parameters) - reached).abs() / (reached - start).abs()
    assert error[alone].median() <= 2.0**-8


def test_a_step_of_adamw_in_pieces_is_bitwise_that_of_torch():
    parameters, others = parameters_of(torch.float32), parameters_of(torch.float32)
    options = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-7, "weight_decay": 0.1}
    ours = [PiecewiseAdamW(parameters, **options), PiecewiseAdamW([*others], offload=True)]
    ours[1].param_groups[0].update(options)
    plain = parameters_of(torch.float32)
    others_of_torch = [p for p in plain if not p.is_contiguous()]  # which the fused kernel mixes up
    theirs = [
        torch.optim.AdamW([p for p in plain if p.is_contiguous()], **options, fused=True),
        torch.optim.AdamW(others_of_torch, **options),
    ]
    for seed in range(1, 5):
        for tensors in (parameters, others, plain):
            step(tensors, seed)
        for optimizer in (*ours, *theirs):
            optimizer.step()
    for optimizer in ours:
        for a, b in zip(optimizer.param_groups[0]["params"], plain, strict=True):
            assert torch.equal(a, b)
            for key, value in theirs[not b.is_contiguous()].state[b].items():
                assert torch.equal(optimizer.state[a][key], value)
