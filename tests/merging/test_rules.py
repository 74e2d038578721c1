"""Each rule against an independent formula on all checkpoints at once, and what all rules share."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perdure.errors import PerdureError
from perdure.merging.draws import uniform
from perdure.merging.fold import PIECE, Place, Source, fold, pieces
from perdure.merging.magnitude import dot, kth_largest, norm
from perdure.merging.rule import Arrival, Arrived, Role, Rule, State
from perdure.merging.rules import find, keywords, make, names
from perdure.merging.rules.opcm import clean
from perdure.merging.rules.slerp import arc
from perdure.seeds import derive


pytestmark = pytest.mark.own

EVERY = pytest.mark.parametrize("name", names())
# A float32 sum of a few task vectors, beside the same in fp64.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def tensors(count: int, shape: Sequence[int] = (6, 5), seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def states(
    rule: Rule,
    base: Tensor,
    experts: Sequence[Tensor],
    weights: Sequence[float | None] = (),
    role: Role = "matrix",
    most: int = PIECE,
    identities: Sequence[str] = (),
    earlier: Sequence[tuple[Tensor, State]] = (),
    before: int = 0,
) -> list[tuple[Tensor, State]]:
    """The base's weights and the state of each piece after the experts have arrived."""
    given_weights = weights or [None] * len(experts)
    rule.check_weights(given_weights)
    sources = [
        Source(
            identity=(identities or [str(number) for number in range(99)])[number],
            arrived=Arrived(weight, norm(expert.double() - base.double())),
            read=lambda piece, weights, expert=expert: (
                _part(expert, piece).to(rule.dtype) - weights
            ),
        )
        for number, (expert, weight) in enumerate(zip(experts, given_weights, strict=True))
    ]
    cut = pieces(base.shape, math.prod(base.shape) if rule.whole else most)
    kept = {piece.offset: state for piece, (_, state) in zip(cut, earlier, strict=False)}
    folded = fold(
        rule,
        Place("w", tuple(base.shape), role),
        lambda piece: _part(base, piece).to(rule.dtype),
        sources,
        earlier=before,
        state=lambda piece: kept.get(piece.offset, {}),
        most=most,
    )
    return [(weights, state) for _, weights, state in folded]


def merge(
    rule: Rule,
    base: Tensor,
    experts: Sequence[Tensor],
    weights: Sequence[float | None] = (),
    **more,
) -> Tensor:
    """The merged weights, in the rule's data type."""
    history = [
        Arrived(weight, norm(expert.double() - base.double()))
        for expert, weight in zip(experts, weights or [None] * len(experts), strict=True)
    ]
    parts = states(rule, base, experts, weights, **more)
    taus = [rule.merged(state, history) for _, state in parts]
    length = math.sqrt(sum(dot(tau, tau) for tau in taus))
    scale = rule.scale_of(history, length)
    merged = [weights + scale * tau for (weights, _), tau in zip(parts, taus, strict=True)]
    return torch.cat([part.flatten() for part in merged]).view(base.shape)


def weights_for(name: str, count: int) -> list[float]:
    """Weights of checkpoints for a rule that learns them; none for the others."""
    return [0.5] * count if find(name).learns else []


def _part(tensor: Tensor, piece) -> Tensor:
    return tensor[piece.index] if piece.index else tensor


def taus(base: Tensor, experts: Sequence[Tensor]) -> Tensor:
    return torch.stack([expert.double() - base.double() for expert in experts])


# --- independent formulas over all checkpoints at once -------------------------------------------


def test_average_is_the_weighted_mean():
    base, *experts = tensors(5)
    weights = [0.5, 2.0, 1.0, 0.25]
    mean = sum(w * e.double() for w, e in zip(weights, experts, strict=True)) / sum(weights)
    torch.testing.assert_close(
        merge(make("average"), base, experts, weights).double(), mean, **CLOSE
    )


def test_task_arithmetic_is_a_sum_of_task_vectors():
    base, *experts = tensors(4)
    weights = [1.0, -0.5, 0.25]
    rule = make("task_arithmetic", {"scale": 0.4})
    wanted = base.double() + 0.4 * torch.einsum(
        "t,tij->ij", torch.tensor(weights).double(), taus(base, experts)
    )
    torch.testing.assert_close(merge(rule, base, experts, weights).double(), wanted, **CLOSE)


def test_ema_is_the_unrolled_average_and_1_over_t_the_mean():
    base, *experts = tensors(4)
    w = 0.3
    wanted = (1 - w) ** 3 * base.double()
    for number, expert in enumerate(experts, start=1):
        wanted += w * (1 - w) ** (3 - number) * expert.double()
    merged = merge(make("ema", {"weight": w}), base, experts)
    torch.testing.assert_close(merged.double(), wanted, **CLOSE)
    mean = torch.stack(experts).double().mean(0)
    merged = merge(make("ema", {"weight": None}), base, experts)
    torch.testing.assert_close(merged.double(), mean, **CLOSE)
    assert torch.equal(merge(make("ema", {"weight": 0}), base, experts), base)
    last = merge(make("ema", {"weight": 1}), base, experts)
    torch.testing.assert_close(last, experts[-1], **CLOSE)
    given_weights = merge(make("ema"), base, experts, [1.0, 0.5, 0.25])
    wanted = 0.75 * (0.5 * experts[0] + 0.5 * experts[1]) + 0.25 * experts[2]
    torch.testing.assert_close(given_weights, wanted, **CLOSE)


def test_the_coefficients_of_linear_rules_are_those_of_their_folds():
    base, *experts = tensors(4)
    weights = [0.5, 1.0, 0.25]
    for name in names():
        if not find(name).linear:
            continue
        rule = make(name)
        history = [Arrived(weight, 1.0) for weight in weights]
        coefficients = torch.tensor(rule.coefficients(history)).double()
        wanted = base.double() + torch.einsum("t,tij->ij", coefficients, taus(base, experts))
        torch.testing.assert_close(merge(rule, base, experts, weights).double(), wanted, **CLOSE)


def test_ties_with_four_sums_is_ties_on_all_checkpoints():
    base, *experts = tensors(6, (9, 7))
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.25]).double()
    tau = taus(base, experts).float().double()  # magnitudes are ranked in fp32
    count = round(0.3 * base.numel())
    limit = tau.abs().flatten(1).sort(dim=1, descending=True).values[:, count - 1, None, None]
    trimmed = torch.where(tau.abs() >= limit, tau, 0)
    assert (trimmed != 0).flatten(1).sum(1).tolist() == [count] * 5
    weighted = weights[:, None, None] * trimmed
    elected = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agrees = trimmed.sign() == elected
    mass = (weights[:, None, None] * agrees).sum(0)
    wanted = base.double() + 0.5 * torch.where(
        mass > 0, (weighted * agrees).sum(0) / mass.clamp_min(1e-9), 0
    )
    rule = make("ties", {"density": 0.3, "scale": 0.5})
    merged = merge(rule, base, experts, weights.tolist())
    torch.testing.assert_close(merged.double(), wanted, **CLOSE)


def test_ties_elects_plus_at_equal_masses_and_is_symmetric_in_the_sign():
    base = torch.zeros(2, 2)
    experts = [torch.tensor([[2.0, -2.0], [1.0, 0.0]]), torch.tensor([[-2.0, 2.0], [3.0, 0.0]])]
    rule = make("ties", {"density": 1})
    assert merge(rule, base, experts).tolist() == [[2.0, 2.0], [2.0, 0.0]]
    base, *experts = tensors(4)
    mirrored = [2 * base - expert for expert in experts]
    rule = make("ties", {"exact": True})
    change, mirror = (merge(rule, base, list(e)) - base for e in (experts, mirrored))
    torch.testing.assert_close(mirror, -change, atol=1e-6, rtol=1e-5)


def test_dare_keeps_a_share_rescales_it_and_means_the_task_vector():
    base = torch.zeros(40, 50)
    expert = torch.ones(40, 50)
    kept = merge(make("dare", {"density": 0.25}), base, [expert])
    assert set(kept.unique().tolist()) == {0.0, 4.0}
    # 2,000 draws: five standard deviations of a share of 1/4 are 0.05.
    assert abs((kept > 0).float().mean().item() - 0.25) < 0.05
    seeds = [merge(make("dare", {"density": 0.25, "seed": s}), base, [expert]) for s in range(50)]
    assert abs(torch.stack(seeds).mean().item() - 1.0) < 0.03
    torch.testing.assert_close(merge(make("dare", {"density": 1}), base, [expert]), expert)


def test_dare_depends_on_the_checkpoint_the_tensor_and_the_seed_alone():
    base, one, other = tensors(3, (30, 20))
    rule = make("dare", {"density": 0.5, "exact": True})
    ab = merge(rule, base, [one, other], identities=["a", "b"])
    ba = merge(rule, base, [other, one], identities=["b", "a"])
    assert torch.equal(ab, ba)
    assert not torch.equal(ab, merge(rule, base, [one, other], identities=["b", "a"]))
    keep = uniform(derive(0, "dare", "a", "w"), 0, 600).view(30, 20) < 0.5
    alone = merge(rule, base, [one], identities=["a"]) - base
    assert torch.equal(alone != 0, keep)


def test_draws_are_uniform_and_do_not_depend_on_where_they_begin():
    numbers = uniform(7, 0, 100_000)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean().item() - 0.5) < 0.01
    assert abs(numbers.var().item() - 1 / 12) < 0.001
    assert torch.equal(uniform(7, 1234, 50), numbers[1234:1284])
    assert not torch.equal(uniform(8, 0, 50), numbers[:50])


def test_breadcrumbs_drops_the_largest_and_the_smallest():
    base = torch.zeros(10, 10)
    expert = torch.arange(1.0, 101.0).view(10, 10)
    rule = make("breadcrumbs", {"density": 0.5, "gamma": 0.1})
    merged = merge(rule, base, [expert]).flatten()
    assert merged.nonzero().flatten().tolist() == list(range(40, 90))  # 41 to 90 of 1 to 100


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (8, 8)])
def test_small_tensors_are_neither_zeroed_nor_refused(shape):
    """Where other implementations zero everything with gamma 0, or fail at a low density."""
    base, expert = torch.zeros(shape), tensors(1, shape)[0]
    largest = expert.abs().max()
    for rule in (
        make("breadcrumbs", {"gamma": 0}),
        make("breadcrumbs", {"gamma": 0.005}),
        make("ties", {"density": 0.1}),
    ):
        assert merge(rule, base, [expert]).abs().max() == largest
    one = merge(make("breadcrumbs", {"density": 0.1, "gamma": 0.9}), base, [expert])
    assert one.any()


@EVERY
def test_a_tensor_without_elements_stays_one(name):
    experts = [torch.zeros(0, 4), torch.zeros(0, 4)]
    merged = merge(make(name), torch.zeros(0, 4), experts, weights_for(name, 2))
    assert merged.shape == (0, 4)


def test_magmax_takes_the_largest_change_and_of_equal_ones_the_later():
    base, *experts = tensors(5)
    tau = taus(base, experts).float()
    largest = tau.gather(0, tau.abs().argmax(0, keepdim=True))[0]
    merged = merge(make("magmax", {"scale": 0.5}), base, experts)
    torch.testing.assert_close(merged, base + 0.5 * largest, **CLOSE)
    zero, up, down = torch.zeros(2), torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])
    assert torch.equal(merge(make("magmax"), zero, [up, down]), down)


def test_slerp_has_its_endpoints_and_moves_on_the_arc():
    base = torch.zeros(1, 2)
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for between in ("weights", "task_vectors"):
        half = merge(make("slerp", {"between": between}), base, [one, other])
        torch.testing.assert_close(half, torch.full((1, 2), math.sqrt(0.5)))
        third = merge(make("slerp", {"t": 1 / 3, "between": between}), base, [one, other])
        angle = math.pi / 6
        torch.testing.assert_close(third, torch.tensor([[math.cos(angle), math.sin(angle)]]))
        for t, wanted in ((0, one), (1, other)):
            merged = merge(make("slerp", {"t": t, "between": between}), base, [one, other])
            torch.testing.assert_close(merged, wanted)
    base, one, other = tensors(3)
    forth = merge(make("slerp", {"t": 0.25}), base, [one, other])
    back = merge(make("slerp", {"t": 0.75}), base, [other, one])
    torch.testing.assert_close(forth, back, **CLOSE)
    assert arc(2.0, 2.0002, 4.0004, t=0.3) == (0.7, 0.3)  # parallel: a line
    assert arc(0.0, 2.0, 0.0, t=0.3) == (0.7, 0.3)


def test_model_stock_from_sums_is_that_of_all_pairs():
    base, *experts = tensors(5)
    shift = tensors(1, seed=9)[0]  # so that the task vectors agree
    experts = [base + shift + 0.3 * expert for expert in experts]
    tau = taus(base, experts).flatten(1)
    unit = tau / tau.norm(dim=1, keepdim=True)
    cosines = [(unit[i] @ unit[j]).item() for i in range(4) for j in range(i)]
    cosine = sum(cosines) / len(cosines)
    t = 4 * cosine / (1 + 3 * cosine)
    wanted = base.double() + t * tau.mean(0).view(base.shape)
    torch.testing.assert_close(merge(make("model_stock"), base, experts).double(), wanted, **CLOSE)
    zero, one, other = torch.zeros(1, 2), torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert not merge(make("model_stock"), zero, [one, other]).any()  # at right angles: the base
    assert not merge(make("model_stock"), zero, [one, -one]).any()  # opposed: not beyond it
    same = merge(make("model_stock"), zero, [one, one, zero])
    # Two equal ones and one without a direction: the mean cosine is 1/3, and t = 1/(1 + 2/3).
    torch.testing.assert_close(same, 3 / 5 * 2 / 3 * one)


def test_the_projection_of_opcm_by_the_thin_svd_is_that_of_the_full_one():
    for shape in ((5, 9), (9, 5), (6, 6)):
        merged, tau = (t.double() for t in tensors(2, shape))
        u, s, vh = torch.linalg.svd(merged, full_matrices=True)
        for alpha in (0.0, 0.3, 0.5, 0.9):
            r = int((s.cumsum(0) / s.sum() > alpha).int().argmax())
            rotated = u.T @ tau @ vh.T
            rotated.diagonal().zero_()
            rotated[:r, :r] = 0
            wanted = u @ rotated @ vh
            cleaned = clean(tau, merged, alpha)
            torch.testing.assert_close(cleaned, wanted)
            assert abs(dot(merged, cleaned)) < 1e-12
        everything = clean(tau, merged, 1.0)  # with alpha 1, all directions, and not none
        assert (u.T @ everything @ vh.T)[: len(s), : len(s)].abs().max() < 1e-12
    packed, tau = (t.double() for t in tensors(2, (3, 4, 5)))
    experts = torch.stack([clean(t, p, 0.5) for t, p in zip(tau, packed, strict=True)])
    assert torch.equal(clean(tau, packed, 0.5), experts)
    assert torch.equal(clean(tau, torch.zeros_like(tau), 0.5), tau)


def test_opcm_keeps_the_mean_norm_and_adds_vectors():
    base, *experts = tensors(4)
    rule = make("opcm", {"exact": True})
    merged = merge(rule, base, experts) - base
    norms = [norm(tau) for tau in taus(base, experts)]
    assert math.isclose(norm(merged), sum(norms) / 3, rel_tol=1e-12)
    # The same by the recursion of the paper, with the scale folded into lambda.
    current, scale = taus(base, experts)[0], 1.0
    for number, tau in enumerate(taus(base, experts)[1:], start=2):
        grown = scale * current + clean(tau, current, 0.5)
        mean, length = sum(norms[:number]) / number, norm(grown)
        current, scale = grown * mean / length, length / mean
    torch.testing.assert_close(merged, current)
    added = merge(rule, base, experts, role="embedding") - base
    total = taus(base, experts).sum(0)
    torch.testing.assert_close(added, total * (sum(norms) / 3 / norm(total)))


# --- what all rules share ------------------------------------------------------------------------


@EVERY
def test_the_base_alone_gives_the_base(name):
    base = tensors(1)[0]
    assert torch.equal(merge(make(name), base, [base, base]), base)


# With these keywords one checkpoint gives itself; else its change is thinned, or halved.
UNIT = {
    "ties": {"density": 1},
    "dare": {"density": 1},
    "breadcrumbs": {"density": 1, "gamma": 0},
    "ema": {"weight": 1},
}


@EVERY
def test_one_checkpoint_gives_itself(name):
    base, expert = tensors(2)
    merged = merge(make(name, UNIT.get(name)), base, [expert])
    torch.testing.assert_close(merged.float(), expert, rtol=0, atol=1e-6)
    half = merge(make("ema"), base, [expert])
    torch.testing.assert_close(half, (base + expert) / 2)


@EVERY
@pytest.mark.parametrize("role", ["vector", "embedding"])
def test_vectors_are_neither_thinned_nor_projected(name, role):
    base, expert = tensors(2, (50,)) if role == "vector" else tensors(2)
    values = UNIT.get(name) if role == "embedding" or name == "ema" else None
    merged = merge(make(name, values), base, [expert], role=role)
    torch.testing.assert_close(merged.float(), expert, rtol=0, atol=1e-6)


def test_opcm_projects_copies_of_a_matrix_away_and_adds_those_of_a_vector():
    """So copies change the shares of both in a model, whose norm is kept."""
    rule, expected = make("opcm"), {"matrix": 1, "vector": 3}
    for role, times in expected.items():
        tau, _ = tensors(2) if role == "matrix" else tensors(2, (50,))
        state: State = {}
        for number in (1, 2, 3):
            state = rule.arrive(state, tau, Arrival(number, shape=tau.shape, role=role))
        torch.testing.assert_close(state["sum"], times * tau, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in names() if name != "opcm"])
def test_copies_give_what_one_gives_if_the_rule_says_so(name):
    base, expert = tensors(2)
    one, three = (
        merge(make(name), base, [expert] * n, weights_for(name, n), identities="aaa")
        for n in (1, 3)
    )
    same = torch.allclose(one, three, rtol=0, atol=1e-6)
    assert same == make(name).idempotent


@EVERY
def test_the_order_matters_only_if_the_rule_says_so(name):
    base, *experts = tensors(4, (8, 8))
    ids, weights = ["a", "b", "c"], weights_for(name, 3)
    merged = [
        merge(
            *(make(name), base, [experts[i] for i in order], weights),
            identities=[ids[i] for i in order],
        )
        for order in permutations(range(3))
    ]
    spread = max((other - merged[0]).abs().max().item() for other in merged)
    assert (spread > 1e-5) == make(name).order_matters


@EVERY
@settings(max_examples=8)
@given(data=st.data())
def test_pieces_give_what_whole_tensors_give(name, data):
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    most = data.draw(st.sampled_from([1, 7, 10]))
    base, *experts = tensors(4, shape, seed=data.draw(st.integers(0, 99)))
    role: Role = "vector" if len(shape) == 1 else "matrix"
    whole = merge(make(name), base, experts, role=role)
    in_pieces = merge(make(name), base, experts, role=role, most=most)
    if type(make(name)).look_back is Rule.look_back:
        assert torch.equal(in_pieces, whole)
    else:  # inner products of whole tensors, whose sums in fp64 are rounded otherwise
        torch.testing.assert_close(in_pieces, whole, **CLOSE)


@EVERY
def test_one_after_another_gives_what_all_at_once_give(name):
    """The state that one arrival leaves is all that the next one needs."""
    base, *experts = tensors(5, (7, 6))
    rule, weights = make(name), [None, None, None, None]
    once = states(rule, base, experts, weights)
    earlier: list[tuple[Tensor, State]] = []
    for number, expert in enumerate(experts):
        stored = [(w, {k: v.clone() for k, v in s.items()}) for w, s in earlier]
        ids = [str(number)]
        earlier = states(rule, base, [expert], identities=ids, earlier=stored, before=number)
    for (_, one), (_, other) in zip(once, earlier, strict=True):
        assert one.keys() == other.keys() == {*rule.state, *rule.scalars}
        assert all(torch.equal(one[key], other[key]) for key in one)


@EVERY
def test_a_state_does_not_change_when_a_checkpoint_arrives(name):
    base, *experts = tensors(3)
    (_, state), *_ = states(make(name), base, experts[:1])
    before = {key: value.clone() for key, value in state.items()}
    states(make(name), base, experts[1:], earlier=[(base, state)], before=1)
    assert all(torch.equal(state[key], before[key]) for key in before)


def halves(count: int, shape: Sequence[int] = (20, 30)) -> list[Tensor]:
    return [tensor.to(torch.bfloat16) for tensor in tensors(count, shape)]


@EVERY
def test_an_arrival_is_taken_back_if_the_rule_can(name):
    base, *experts = halves(4)
    rule = make(name, {"exact": True})
    history = states(rule, base, experts[:2])
    place = Arrival(number=3, identity="2", tensor="w", shape=tuple(base.shape))
    tau = experts[2].double() - base.double()
    before = history[0][1]
    seen = rule.look(lambda: iter([tau]), place)
    seen |= rule.look_back(lambda: iter([(before, tau, base.double())]), place)
    arrival = Arrival(**{**vars(place), "seen": seen, "base": base.double()})
    state = rule.arrive(before, tau, arrival)
    if not rule.can_undo:
        with pytest.raises(PerdureError, match=f"{name}: an arrival cannot be taken out"):
            rule.undo(state, tau, arrival)
        return
    undone = rule.undo(state, tau, arrival)
    if name in ("average", "task_arithmetic", "ties", "breadcrumbs"):  # sums of bf16 in fp64
        assert all(torch.equal(undone[key], before[key]) for key in undone)
    for key in undone:
        torch.testing.assert_close(undone[key], before[key], rtol=0, atol=1e-12)


def test_exact_sums_do_not_depend_on_the_order():
    base, *experts = halves(9)
    for name, values in (("average", {}), ("task_arithmetic", {}), ("ties", {"density": 0.5})):
        rule = make(name, {**values, "exact": True})
        forth, back = (merge(rule, base, e, identities="a" * 8) for e in (experts, experts[::-1]))
        assert torch.equal(forth, back)


def test_the_state_is_not_rounded_to_the_data_type_of_the_checkpoints():
    """Folding 20 checkpoints in bf16 would lose half of the merged task vector."""
    base = halves(1)[0]
    steps = [0.05 * tensor for tensor in tensors(20, (20, 30), seed=5)]
    experts = [(base.float() + step).to(torch.bfloat16) for step in steps]
    wanted = torch.stack([expert.double() for expert in experts]).mean(0)
    for name, values in (("average", {}), ("ema", {"weight": None})):
        merged = merge(make(name, values), base, experts)
        torch.testing.assert_close(merged.double(), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(merged.to(torch.bfloat16), wanted.to(torch.bfloat16))


@given(
    values=st.lists(
        st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False), min_size=1, max_size=40
    ),
    cut=st.integers(1, 9),
    data=st.data(),
)
def test_the_kth_largest_magnitude_is_exact(values, cut, data):
    tensor = torch.tensor(values, dtype=torch.float32)
    k = data.draw(st.integers(1, len(values)))
    wanted = tensor.abs().sort(descending=True).values[k - 1].item()
    assert kth_largest(lambda: iter(tensor.split(cut)), k) == wanted


@given(shape=st.lists(st.integers(1, 7), max_size=4), most=st.integers(1, 60))
def test_pieces_are_contiguous_and_cover_a_tensor_once(shape, most):
    tensor = torch.arange(math.prod(shape)).view(shape)
    cut = list(pieces(shape, most))
    assert torch.equal(torch.cat([_part(tensor, p).flatten() for p in cut]), tensor.flatten())
    for piece in cut:
        part = _part(tensor, piece)
        assert part.numel() == piece.count
        assert int(part.flatten()[0]) == piece.offset
        assert piece.count <= max(most, shape[-1] if len(shape) > 1 else 1)


@EVERY
def test_a_rule_says_what_it_is(name):
    rule = make(name)
    text = rule.__doc__ or ""
    assert rule.name == name
    assert "State: " in text
    for key in keywords(name):
        assert key == "exact" or f"        {key}: " in text, key
    assert len(rule.state) >= 1


def refusals():
    yield "tiess", {}, "unknown rule 'tiess'; did you mean 'ties'?"
    yield "linear", {}, "unknown rule 'linear'; did you mean 'average'?"
    yield "dare_linear", {}, "did you mean 'dare'?"
    yield "ties", {"lambda": 1}, "ties has no keyword 'lambda'; did you mean 'scale'?"
    yield "ties", {"weights": [1]}, "weights of checkpoints are given with --weights"
    yield "ties", {"density": 0}, "ties: density must be > 0 and <= 1, got 0"
    yield "ties", {"density": 1.5}, "ties: density must be > 0 and <= 1, got 1.5"
    yield "ties", {"density": "much"}, "ties: density takes a number, got 'much'"
    yield "ties", {"density": float("nan")}, "density must be a finite number"
    yield "dare", {"seed": -1}, "dare: seed must be >= 0, got -1"
    yield "breadcrumbs", {"density": 0.95, "gamma": 0.1}, "density + gamma must be <= 1, got 1.05"
    yield "ema", {"weight": 1.5}, "ema: weight must be >= 0 and <= 1, got 1.5"
    yield "slerp", {"t": 2}, "slerp: t must be >= 0 and <= 1, got 2"
    yield "slerp", {"between": "models"}, "'models' is not a choice"
    yield "opcm", {"alpha": -1}, "opcm: alpha must be >= 0 and <= 1, got -1"


@pytest.mark.parametrize(("name", "values", "words"), list(refusals()))
def test_what_a_rule_cannot_take_is_refused(name, values, words):
    with pytest.raises(PerdureError) as error:
        make(name, values)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("average", [1.0, -1.0], "the weights add up to 0"),
        ("ties", [0.0], "ties: a weight must be > 0, got 0"),
        ("ema", [2.0], "ema: a weight must be in [0, 1], got 2"),
        ("slerp", [-0.5], "slerp: a weight is its t, in [0, 1], got -0.5"),
        ("opcm", [0.5], "opcm: takes no weights"),
        ("model_stock", [None, 0.5], "model_stock: takes no weights"),
    ],
)
def test_weights_that_a_rule_cannot_take_are_refused(name, weights, words):
    with pytest.raises(PerdureError) as error:
        make(name).check_weights(weights)
    assert words in str(error.value)


def test_ties_keeps_no_residue_of_weights_that_were_taken_out():
    """(0.7 + 0.1) - 0.7 - 0.1 is not 0 in fp32, where only the first two arrivals had a change."""
    rule, taus = make("ties", {"density": 0.2}), tensors(3, (40, 30))
    weights = (0.7, 0.1, 1.0)

    def arrival(number: int) -> Arrival:
        known = Arrival(number + 1, weights[number], shape=(40, 30))
        return replace(known, seen=rule.look(lambda: iter([taus[number]]), known))

    state: State = {}
    for number in range(3):
        state = rule.arrive(state, taus[number], arrival(number))
    for number in (0, 1):
        state = rule.undo(state, taus[number], arrival(number))
    history = [Arrived(1.0, float(taus[2].norm()))]
    alone = rule.merged(rule.arrive({}, taus[2], arrival(2)), history)
    torch.testing.assert_close(rule.merged(state, history), alone, rtol=0, atol=1e-5)
