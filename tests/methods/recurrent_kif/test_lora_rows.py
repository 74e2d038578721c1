"""Recurrent-KIF that identifies and fuses the rows of LoRA's products, against dense products."""

from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig
from torch import nn

from marks import at_least
from methods.recurrent_kif.reference import SEQUENTIAL, Importance, Reference
from perdure.api import report, run
from perdure.config import Config
from perdure.errors import PerdureError
from perdure.methods import make
from perdure.methods.recurrent_kif import presets
from perdure.methods.recurrent_kif.method import RecurrentKIF
from perdure.methods.recurrent_kif.rounds import table_of
from perdure.methods.recurrent_kif.rows import (
    Factors,
    RowRounds,
    adapters_of,
    check_lora,
    fuse_rows,
    units_of,
)
from place import setting_for
from train.engine import engine, learned, same, tiny_base, tokenized, weights


pytestmark = pytest.mark.own


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(seed: int, near: Factors | None = None) -> Factors:
    """Factors of a product [5, 7] of rank 3, which may be near to others."""
    a, b = drawn(seed, 3, 7), drawn(seed + 50, 5, 3)
    return Factors(a, b) if near is None else Factors(near.a + 0.1 * a, near.b + 0.1 * b)


def dense(factors: Factors) -> torch.Tensor:
    return factors.b.double() @ factors.a.double()


def test_the_fused_rows_are_the_nearest_with_the_fused_a():
    start = factors(1)
    inner = factors(2, near=start)
    outer = factors(3, near=inner)
    w_inner, w_outer = drawn(4, 5).sigmoid(), drawn(5, 5).sigmoid()
    a, b = fuse_rows(start, inner, outer, w_inner, w_outer)
    moved = w_inner.mean() * (inner.a - start.a) + w_outer.mean() * (outer.a - inner.a)
    torch.testing.assert_close(a, start.a + moved)
    wanted = dense(start) + w_inner[:, None] * (dense(inner) - dense(start))
    wanted += w_outer[:, None] * (dense(outer) - dense(inner))
    nearest = torch.linalg.lstsq(a.double().T, wanted.T).solution.T
    torch.testing.assert_close(b.double(), nearest, rtol=1e-4, atol=1e-5)
    lost = (wanted - dense(Factors(a, b))).norm() / (wanted - dense(start)).norm()
    assert lost < 0.5  # what is outside the rows of A' is lost, here of rank 3 in 7 dimensions


def test_where_all_rows_keep_the_inner_update_it_is_kept_to_the_bit():
    start = factors(1)
    inner = factors(2, near=start)
    fused = fuse_rows(start, inner, factors(3, near=inner), torch.ones(5), torch.zeros(5))
    assert torch.equal(fused.a, inner.a)
    assert torch.equal(fused.b, inner.b)


def test_rows_that_the_weights_cannot_tell_apart_have_a_least_norm():
    """A of rank 0: nothing of the product can be kept, and nothing becomes infinite."""
    zero = Factors(torch.zeros(3, 7), drawn(1, 5, 3))
    fused = fuse_rows(zero, zero, zero, torch.zeros(5), torch.ones(5))
    assert torch.equal(dense(fused), torch.zeros(5, 7).double())
    assert fused.b.isfinite().all()


def test_rounding_errors_of_a_wide_adapter_are_not_divided_by_each_other():
    """With a rank above d_in, the rows of A depend on each other, but for rounding."""
    at = Factors(drawn(1, 24, 16) / 4, torch.zeros(9, 24))
    for number in range(12):
        inner = Factors(at.a + 0.01 * drawn(3 * number, 24, 16), at.b + 0.01 * drawn(7, 9, 24))
        outer = Factors(inner.a + 0.01 * drawn(5, 24, 16), inner.b + 0.01 * drawn(number, 9, 24))
        shares = [(drawn(seed + number, 9) > 0).float() for seed in (100, 200)]
        at = fuse_rows(at, inner, outer, *shares)
    assert at.b.abs().max() < 1


def test_a_value_that_is_not_finite_is_passed_on_to_the_loss():
    start = factors(1)
    broken = Factors(start.a * torch.inf, start.b)
    fused = fuse_rows(start, start, broken, torch.zeros(5), torch.ones(5))
    assert not fused.b.isfinite().any()


def test_one_quantile_is_of_the_rows_and_one_of_other_weights(tmp_path):
    """A weight of the head is far less than a row, or far more."""
    method = {"recurrent_kif": {"inner_steps": 4, "outer_steps": 2, "unit": "row"}}
    _, trainer = learned("encoder", method, tmp_path, rows=40)
    state = trainer.methods[0].state_dict()
    of_rows, of_head = (
        torch.stack([c for n, c in state.items() if n[:9] == "important" and ("lora" in n) == lora])
        for lora in (True, False)
    )
    for total, inner, outer in (of_rows.sum(0).tolist(), of_head.sum(0).tolist()):
        assert 0.1 * total < inner <= 0.2 * total + 3
        assert 0.1 * total < outer <= 0.2 * total + 3


def test_the_sensitivity_of_a_row_is_that_of_the_product():
    """|sum_j W_ij dL/dW_ij| with W = BA, by autograd in W; a bias is seen weight by weight."""
    x, y = drawn(7, 4, 7), drawn(8, 4, 5)
    a, b = (nn.Parameter(tensor) for tensor in factors(1))
    bias = nn.Parameter(drawn(9, 5))
    (x @ (b @ a).T + bias - y).square().mean().backward()
    names = ["x.lora_A.default.weight", "x.lora_B.default.weight", "x.bias"]
    table = table_of(presets.RECURRENT_KIF["paper"]["fusion"])
    rounds = RowRounds(
        *([a, b, bias], names, table),
        score="sensitivity",
        quantile=0.5,
        beta_uncertainty=0.5,
        momentum="keep",
    )
    rounds.observe(rounds.inner, beta=0.0)
    product = dense(Factors(a.detach(), b.detach())).float().requires_grad_(True)
    (x @ product.T + bias.detach() - y).square().mean().backward()
    rows = (product.detach() * product.grad).sum(1).abs()
    wanted = torch.cat([rows, (bias.detach() * bias.grad).abs()])
    torch.testing.assert_close(rounds.inner.sensitivity, wanted)


def test_products_are_found_by_their_names():
    parameters = [torch.zeros(3, 7), torch.zeros(5, 3), torch.zeros(3, 9), torch.zeros(4, 3)]
    parameters += [torch.zeros(3, 7, 1, 1), torch.zeros(5, 3, 1, 1), torch.zeros(6)]
    names = ["q.lora_A.default.weight", "q.lora_B.default.weight"]
    names += ["e.lora_embedding_A.default", "e.lora_embedding_B.default"]
    names += ["c.lora_A.default.weight", "c.lora_B.default.weight", "head.bias"]
    found = [(unit.parameters, unit.size) for unit in units_of(names, parameters)]
    others = [((2,), 27), ((3,), 12), ((4,), 21), ((5,), 15), ((6,), 6)]
    assert found == [((0, 1), 5), *others]


class RowImportance(Importance):
    """The running sensitivity of every row of a product, and of every other weight."""

    def observe(self):
        seen = self.parameters
        self.parameters = {}
        for n, p in seen.items():
            if "lora_B" in n:
                row = (p.detach() * p.grad).sum(1)
                self.parameters[n] = nn.Parameter(row)
                self.parameters[n].grad = torch.ones_like(row)
            elif "lora_A" not in n:
                self.parameters[n] = p
        super().observe()
        self.parameters = seen

    def masks(self):
        scores, q, masks = self.scores(), self.settings["quantile"], {}
        for is_row in (True, False):
            part = {n: s for n, s in scores.items() if ("lora_B" in n) == is_row}
            if part:
                threshold = torch.quantile(torch.cat([s.flatten() for s in part.values()]), q)
                masks |= {n: s > threshold for n, s in part.items()}
        return masks


class RowReference(Reference):
    """Makes every product, fuses its rows, and solves for the factors."""

    def __init__(self, kind, steps, settings, work):
        super().__init__(kind, steps, settings, work)
        self.inner_importance, self.outer_importance = (
            RowImportance(self.parameters, settings, settings[beta])
            for beta in ("beta_inner", "beta_outer")
        )

    @torch.no_grad()
    def fuse(self, start, reached):
        inner_masks, outer_masks = self.inner_importance.masks(), self.outer_importance.masks()
        end = self.snapshot()
        for n, in_inner in inner_masks.items():
            table = self.settings["fusion"]
            cases = {(1, 1): "both", (1, 0): "inner", (0, 1): "outer", (0, 0): "neither"}
            pairs = zip(in_inner.flatten().tolist(), outer_masks[n].flatten().tolist(), strict=True)
            shares = torch.tensor([table[cases[pair]] for pair in pairs]).double()
            w_in, w_out = shares.unbind(1)
            points = [{k: v.double() for k, v in point.items()} for point in (start, reached, end)]
            if "lora_B" not in n:
                zero, one, two = (point[n].flatten() for point in points)
                moved = zero + w_in * (one - zero) + w_out * (two - one)
                self.parameters[n].copy_(moved.view(end[n].shape))
                continue
            a_name = n.replace("lora_B", "lora_A")
            zero, one, two = (point[a_name] for point in points)
            a = zero + w_in.mean() * (one - zero) + w_out.mean() * (two - one)
            zero, one, two = (point[n] @ point[a_name] for point in points)
            product = zero + w_in[:, None] * (one - zero) + w_out[:, None] * (two - one)
            self.parameters[a_name].copy_(a)
            self.parameters[n].copy_(torch.linalg.lstsq(a.T, product.T).solution.T)


@pytest.mark.parametrize(
    ("kind", "preset"),
    at_least(
        [("causal", "paper"), ("encoder", "release")],
        [(kind, p) for kind in ("causal", "seq2seq", "encoder") for p in ("paper", "release")],
    ),
)
def test_rows_follow_a_slow_reference_of_dense_products(kind, preset, tmp_path):
    settings = presets.RECURRENT_KIF[preset] | {"inner_steps": 4, "outer_steps": 2, "unit": "row"}
    base = tiny_base(kind)
    trainer = engine(base, {"recurrent_kif": settings}, tmp_path, rows=40, **SEQUENTIAL)
    trainer.learn()
    slow = RowReference(kind, 10, settings, tmp_path)
    expected = slow.learn(tokenized(tiny_base(kind), "colour", 40))
    for n, p in weights(base).items():
        torch.testing.assert_close(p, expected[n], rtol=1e-2, atol=1e-3)


def test_rows_that_keep_the_inner_update_are_the_sequential_run(tmp_path):
    neutral = RecurrentKIF.neutral | {"unit": "row", "inner_steps": 4, "outer_steps": 2}
    ours, _ = learned("causal", {"recurrent_kif": neutral}, tmp_path / "ours")
    plain, _ = learned("causal", "sequential", tmp_path / "plain")
    assert same(ours, plain)


def test_a_run_with_rows_is_resumed_to_the_bit(tmp_path):
    method = {"recurrent_kif": {"inner_steps": 4, "outer_steps": 2, "unit": "row"}}
    expected, trainer = learned("causal", method, tmp_path, rows=40, checkpoint_every=5)
    checkpoint = tmp_path / "checkpoint-5"
    resumed, _ = learned("causal", method, tmp_path, rows=40, checkpoint_every=5, resume=checkpoint)
    assert same(expected, resumed)
    state = trainer.methods[0].state_dict()
    assert state["shares"].shape == (3, 4)
    counted = {name: tensor for name, tensor in state.items() if name.startswith("important.")}
    rows = {n: len(p) for n, p in weights(trainer.base).items() if "lora_B" in n}
    assert {name.removeprefix("important."): int(c[0]) for name, c in counted.items()} == {
        name: 3 * size for name, size in rows.items()
    }


def test_what_rows_cannot_have_is_refused_in_one_line(tmp_path):
    for keyword in ({"agree": True}, {"restore": "stage"}, {"quantile_over": "parameter"}):
        with pytest.raises(PerdureError, match=rf"{next(iter(keyword))} is of single weights"):
            RecurrentKIF(unit="row", **keyword)
    with pytest.raises(PerdureError, match="unit takes weight or row, got None"):
        make({"recurrent_kif": {"unit": None}})
    with pytest.raises(PerdureError, match="fusion: soft is of single weights"):
        RecurrentKIF(unit="row", fusion={"soft": 0.5})
    base = tiny_base("causal")
    for settings in (IA3Config(task_type="CAUSAL_LM"), LoraConfig(target_parameters=["x"])):
        base.peft.peft_config["default"] = settings
        (adapter,) = adapters_of(base.model)
        with pytest.raises(PerdureError, match="leave"):
            check_lora(adapter)
    with pytest.raises(PerdureError, match="the adapter is null; set adapter="):
        make({"recurrent_kif": {"unit": "row"}})[0].check(Config(base="x", adapter=None), "causal")
    bias = nn.Parameter(torch.zeros(3))
    table = table_of(presets.RECURRENT_KIF["paper"]["fusion"])
    with pytest.raises(PerdureError, match="no LoRA adapter is trained"):
        RowRounds([bias], ["bias"], table, "sensitivity", 0.8, 0.5, "keep")


def test_the_report_says_that_rows_were_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = {**setting_for("causal", tmp_path, n=16), "guard": None, "max_length": 64}
    method = {"recurrent_kif": {"inner_steps": 2, "outer_steps": 1, "unit": "row"}}
    run({**made, "method": method}, lineage="rows")
    report("rows", out="page.html")
    page = Path("page.html").read_text()
    assert "Share of rows of BA important to the" in page
    assert "the percentages of rows of BA that were above" in page
    assert "of weights important" not in page
