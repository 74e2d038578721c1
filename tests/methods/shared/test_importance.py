"""The tensor functions of Recurrent-KIF against sorted references, slow loops and exact bits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.methods.recurrent_kif.fusion import (
    FusionTable,
    case_shares,
    counts,
    fuse,
    fuse_softly,
    where,
)
from perdure.methods.shared.importance import (
    CHUNK,
    Importance,
    above,
    bits_of,
    flatten,
    flatten_gradients,
    important,
    pack,
    quantile_threshold,
    score,
    unit_range,
    unpack,
    update,
    write_back,
)


pytestmark = pytest.mark.own


PAPER = FusionTable(both=(1, 1), inner=(1, 0), outer=(0, 1), neither=(0, 0))
RELEASE = FusionTable(both=(0.4, 0.6), inner=(1, 0), outer=(0, 1), neither=(0.5, 0.5))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sorted_threshold(scores: Tensor, index: int) -> Tensor:
    return scores.sort().values[index]


# --- the flat buffer


def test_flattening_and_writing_back_is_the_identity_and_keeps_dtype_and_shape():
    parameters = [draw(2, 3), draw(4, seed=1).bfloat16(), draw(3, 2, seed=2).t()]
    before = [parameter.clone() for parameter in parameters]
    flat = flatten(parameters)
    assert flat.dtype == torch.float32
    assert flat.shape == (16,)
    for parameter in parameters:
        parameter.zero_()
    write_back(flat, parameters)
    for old, new in zip(before, parameters, strict=True):
        assert old.dtype == new.dtype
        assert torch.equal(old, new)


def test_the_flat_buffer_and_the_parameters_never_share_memory():
    parameters = [torch.nn.Parameter(draw(5))]
    flat = flatten(parameters)
    assert not flat.requires_grad
    flat.add_(1)
    assert torch.equal(parameters[0], draw(5))
    storage = parameters[0].data_ptr()
    write_back(flat, parameters)
    flat.zero_()
    assert torch.equal(parameters[0], draw(5) + 1)
    assert parameters[0].data_ptr() == storage
    assert parameters[0].requires_grad


def test_a_missing_gradient_counts_as_zeros():
    parameters = [torch.nn.Parameter(draw(2, 2)), torch.nn.Parameter(draw(3))]
    parameters[1].grad = torch.ones(3)
    assert flatten_gradients(parameters).tolist() == [0, 0, 0, 0, 1, 1, 1]
    gradients = flatten_gradients(parameters[1:])
    gradients.zero_()
    assert parameters[1].grad.tolist() == [1, 1, 1]


# --- importance


def test_the_maps_follow_a_slow_loop_in_which_uncertainty_sees_the_new_sensitivity():
    weights, state = draw(7), Importance.zeros(draw(7), "sensitivity_uncertainty")
    sensitivity, uncertainty = [0.0] * 7, [0.0] * 7
    for step in range(5):
        gradients = draw(7, seed=step + 1)
        for i in range(7):
            moment = abs(float(weights[i]) * float(gradients[i]))
            sensitivity[i] = 0.85 * sensitivity[i] + 0.15 * moment
            uncertainty[i] = 0.6 * uncertainty[i] + 0.4 * abs(moment - sensitivity[i])
        assert update(state, [weights], [gradients], 0.85, 0.6)
    assert state.uncertainty is not None
    torch.testing.assert_close(state.sensitivity, torch.tensor(sensitivity))
    torch.testing.assert_close(state.uncertainty, torch.tensor(uncertainty))
    torch.testing.assert_close(score(state), torch.tensor(sensitivity) * torch.tensor(uncertainty))


def test_the_first_uncertainty_is_taken_against_the_new_sensitivity_not_the_old():
    state = Importance.zeros(torch.ones(1), "sensitivity_uncertainty")
    update(state, [torch.ones(1)], [torch.full((1,), -8.0)], 0.5, 0.5)
    assert state.sensitivity.item() == 4
    assert state.uncertainty is not None
    assert state.uncertainty.item() == 2  # 0.5 * |8 - 4|; against the old one it would be 4


def test_a_score_of_sensitivity_alone_allocates_no_uncertainty():
    state = Importance.zeros(draw(3), "sensitivity")
    assert update(state, [draw(3)], [draw(3, seed=1)], 0.55, 0.55)
    assert state.uncertainty is None
    assert score(state) is state.sensitivity


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_gradient_that_is_not_finite_leaves_both_maps_as_they_were(bad: float):
    weights = draw(6) * 100
    state = Importance.zeros(weights, "sensitivity_uncertainty")
    assert update(state, [weights], [draw(6, seed=1)], 0.85, 0.85)
    assert state.uncertainty is not None
    before = state.sensitivity.clone(), state.uncertainty.clone()
    gradients = draw(6, seed=2)
    gradients[4] = bad
    assert not update(state, [weights], [gradients], 0.85, 0.85)
    assert same_bits(state.sensitivity, before[0])
    assert same_bits(state.uncertainty, before[1])


@pytest.mark.parametrize("kind", ["sensitivity", "sensitivity_uncertainty"])
def test_the_mask_does_not_see_the_scale_of_the_gradients(kind):
    weights = draw(999)
    states = [Importance.zeros(weights, kind) for _ in range(3)]
    for step in range(3):
        for state, scale in zip(states, (1, 2.0**-20, 2.0**13), strict=True):
            update(state, [weights], [draw(999, seed=step + 1) * scale], 0.85, 0.85)
    masks = [important(score(state), 0.8) for state in states]
    assert masks[0].sum() == 200
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


# --- the threshold


SHAPES = {
    "random": lambda: draw(10_001).abs(),
    "small products": lambda: (draw(5000) * draw(5000, seed=1) * 1e-9).square(),
    "tied": lambda: torch.arange(5000).remainder(7).float(),
    "constant": lambda: torch.full((1000,), 0.1),
    "zeros": lambda: torch.zeros(1000),
    "mostly zeros": lambda: torch.where(draw(1000) > 1, 1.0, 0.0),
    "denormal": lambda: torch.arange(1000).remainder(777).int().view(torch.float32),
    "some infinite": lambda: torch.where(draw(1000) > 0.5, float("inf"), draw(1000).abs()),
    "one": lambda: torch.tensor([3.5]),
    "two": lambda: torch.tensor([2.0, 1.0]),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("q", [0, 0.25, 0.5, 0.8, 0.99, 1])
def test_the_threshold_is_the_sorted_order_statistic(name: str, q: float):
    scores = SHAPES[name]()
    index = int(q * 100) * (len(scores) - 1) // 100
    assert same_bits(quantile_threshold(scores, q), sorted_threshold(scores, index))
    assert same_bits(quantile_threshold(scores, q), scores.kthvalue(index + 1).values)


def test_negative_zero_is_a_zero():
    assert quantile_threshold(torch.tensor([-0.0, 0.0, -0.0, 1.0]), 0.5) == 0


def test_the_rank_is_that_of_the_decimal_q_not_of_its_rounded_product():
    assert 0.29 * 100 < 29  # the float product is short of the rank that is meant
    assert quantile_threshold(torch.arange(101).float(), 0.29) == 29


def test_the_threshold_has_no_limit_at_2_to_the_24():
    n = 2**24 + 17
    assert n > CHUNK
    scores = torch.arange(n, dtype=torch.int32).roll(n // 3).view(torch.float32)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(scores, 0.8)
    index = 8 * (n - 1) // 10
    assert quantile_threshold(scores, 0.8).view(torch.int32) == index


@pytest.mark.parametrize("bad", [float("nan"), -1.0, -1e-45])
def test_scores_that_are_nan_or_negative_are_refused(bad: float):
    with pytest.raises(ValueError, match="NaN"):
        quantile_threshold(torch.tensor([1.0, bad, 2.0]), 0.5)


@pytest.mark.parametrize("q", [-0.1, 1.1])
def test_a_q_outside_its_range_is_refused(q: float):
    with pytest.raises(ValueError, match="q ="):
        quantile_threshold(torch.ones(3), q)


values = st.one_of(
    st.integers(0, 3).map(float),
    st.floats(0, 2.0**100, width=32),
    st.floats(0, 2.0**-127, width=32),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(values, min_size=1, max_size=40), st.integers(0, 64))
def test_the_mask_is_that_of_the_interpolated_quantile(numbers: list[float], sixty_fourths: int):
    scores, q = torch.tensor(numbers), sixty_fourths / 64
    interpolated = torch.quantile(scores.double(), q)  # double, so that it stays between neighbours
    assert torch.equal(important(scores, q), scores.double() > interpolated)


@pytest.mark.parametrize("seed", range(20))
def test_the_mask_on_random_scores_is_that_of_torch_quantile(seed: int):
    scores = draw(1000 + seed, seed=seed).square()
    assert torch.equal(important(scores, 0.8), scores > torch.quantile(scores, 0.8))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(values, values), min_size=1, max_size=40))
def test_a_mask_of_bits_is_that_of_a_comparison(pairs: list[tuple[float, float]]):
    scores, thresholds = torch.tensor([*pairs, (math.inf, 0.0), (math.inf, math.inf)]).unbind(1)
    mask = above(scores, thresholds)
    assert torch.equal(mask, bits_of(scores > thresholds))
    assert torch.equal(above(scores, thresholds[0]), bits_of(scores > thresholds[0]))
    assert torch.equal(where(mask, scores, thresholds), torch.maximum(scores, thresholds))


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000, 1001])
def test_a_packed_mask_has_an_eighth_of_the_bytes_and_comes_back(n: int):
    mask = bits_of(draw(n) > 0.8)
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert len(packed) == (n + 7) // 8
    assert torch.equal(unpack(packed, n), mask)


# --- fusion


def points(n: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    start = draw(n)
    start[::7] = -0.0
    inner = start + draw(n, seed=1) / 100
    return start, inner, inner + draw(n, seed=2) / 100


def test_with_full_masks_and_whole_weights_the_result_is_the_outer_point_bit_for_bit():
    start, inner, outer = points()
    full = torch.ones(len(start), dtype=torch.bool)
    assert same_bits(fuse(start, inner, outer, full, full, PAPER), outer)


def test_with_empty_masks_the_paper_returns_to_the_start_bit_for_bit():
    start, inner, outer = points()
    empty = torch.zeros(len(start), dtype=torch.bool)
    fused = fuse(start, inner, outer, empty, empty, PAPER)
    assert same_bits(fused, start)
    assert fused.data_ptr() != start.data_ptr()


def test_where_only_the_new_task_needs_a_weight_it_is_the_inner_point_bit_for_bit():
    start, inner, outer = points()
    full = torch.ones(len(start), dtype=torch.bool)
    for table in (PAPER, RELEASE):
        assert same_bits(fuse(start, inner, outer, full, ~full, table), inner)


@pytest.mark.parametrize(
    "table",
    [
        PAPER,
        RELEASE,
        FusionTable((0.3, 0.7), (1, 0.25), (0.25, 1), (0, 0.5)),
        FusionTable(*[(0.5, 0)] * 4),
    ],
)
def test_every_weight_follows_the_table(table: FusionTable):
    start, inner, outer = points()
    inner_mask, outer_mask = draw(4000, seed=3) > 0.8, draw(4000, seed=4) > 0.8
    expected = []
    for s, i, o, in_i, in_o in zip(
        *(x.tolist() for x in (start, inner, outer, inner_mask, outer_mask)), strict=True
    ):
        w_inner, w_outer = table[2 * (not in_i) + (not in_o)]
        expected.append(s + w_inner * (i - s) + w_outer * (o - i))
    fused = fuse(start, inner, outer, inner_mask, outer_mask, table)
    torch.testing.assert_close(fused, torch.tensor(expected), rtol=3e-7, atol=3e-7)


def test_soft_weights_are_the_softmax_of_both_scores_in_their_range():
    start, inner, outer = points()
    ours, theirs = draw(4000, seed=3).abs() * 7, draw(4000, seed=4).abs() / 9
    a, b = ((s - s.min()) / (s.max() - s.min()) for s in (ours.double(), theirs.double()))
    w = torch.stack([a, b]).div(0.25).softmax(0)
    expected = start.double() + w[0] * (inner - start) + w[1] * (outer - inner)
    fused = fuse_softly(start, inner, outer, ours, theirs, 0.25)
    torch.testing.assert_close(fused.double(), expected, rtol=1e-6, atol=1e-6)


def test_soft_weights_of_scores_that_say_nothing_are_one_half():
    start, inner, outer = points()
    for ours, theirs in ((start.abs(), start.abs()), (torch.ones(4000), torch.zeros(4000))):
        fused = fuse_softly(start, inner, outer, ours, theirs, 0.25)
        torch.testing.assert_close(fused, (start + outer) / 2, rtol=1e-6, atol=1e-6)


def test_fusing_changes_none_of_its_inputs():
    start, inner, outer = points()
    mask = draw(4000, seed=3) > 0.8
    for table in (PAPER, RELEASE):
        fuse(start, inner, outer, mask, ~mask, table).zero_()
    fuse_softly(start, inner, outer, mask.float(), mask.float(), 1.0).zero_()
    for old, new in zip(points(), (start, inner, outer), strict=True):
        assert same_bits(old, new)


def test_the_shares_of_the_four_cases_are_counted_in_the_tables_order():
    inner_mask = torch.tensor([True] * 3 + [False] * 7)
    outer_mask = torch.tensor([True] * 1 + [False] * 2 + [True] * 4 + [False] * 3)
    counted = counts(inner_mask, outer_mask)
    assert counted.tolist() == [3, 5, 1]
    torch.testing.assert_close(case_shares(*counted, n=10), torch.tensor([0.1, 0.2, 0.4, 0.3]))


def test_the_unit_range_is_from_the_least_to_the_greatest_and_equal_scores_are_zero():
    assert unit_range(torch.tensor([3.0, 1.0, 2.0])).tolist() == [1.0, 0.0, 0.5]
    assert unit_range(torch.full((4,), 7.0)).tolist() == [0.0] * 4
