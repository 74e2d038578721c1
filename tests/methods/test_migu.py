"""MIGU: which rows are kept, by layer outputs computed by hand."""

import math

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import TrainerCallback

from perdure.config import Config
from perdure.errors import PerdureError
from perdure.methods.migu import MIGU, largest
from perdure.train.parameters import trained
from tiny import KINDS
from train.engine import engine, tiny_base


pytestmark = pytest.mark.own


def uneven(trainer, kind):
    """Rows of several lengths, so that there is padding; T5's texts and answers are as long."""
    rows = trainer.train_dataset
    for i, row in enumerate(rows):
        cut = i % 3
        if kind == "seq2seq":
            row["labels"] = row["input_ids"][: len(row["input_ids"]) - (2 - cut)]
        row["input_ids"] = row["input_ids"][cut:]
        if kind == "causal":
            row["labels"] = row["labels"][cut:]


class ByHand(TrainerCallback):
    """Per LoRA layer the sums of |A x| and |W x + s B A x| over tokens, from the layer's input x.

    Sees only what passes inside the engine's `compute_loss`; compares before every step.
    """

    def __init__(self, kind):
        self.kind, self.inputs, self.sums, self.steps = kind, None, {}, 0

    def watch(self, trainer):
        self.model, original = trainer.base.model, trainer.compute_loss
        for name, layer in self.model.named_modules():
            if isinstance(layer, LoraLayer):
                layer.register_forward_pre_hook(self.seen(name))

        def compute(model, inputs, **kwargs):
            self.inputs = inputs
            loss = original(model, inputs, **kwargs)
            self.inputs = None
            return loss

        trainer.compute_loss = compute

    def mask(self, name):
        of_answer = (
            self.kind == "seq2seq" and ".decoder." in name and "EncDecAttention.v" not in name
        )
        return self.inputs["labels"] != -100 if of_answer else self.inputs["attention_mask"] == 1

    @torch.no_grad()
    def seen(self, name):
        def hook(layer, args):
            if self.inputs is None or not layer.training:
                return
            x = args[0].detach()[self.mask(name)]  # [tokens, in]
            a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
            low, bias = x @ a.mT, layer.base_layer.bias
            y = x @ layer.base_layer.weight.mT + 2.0 * low @ b.mT + (0 if bias is None else bias)
            for part, out in (("A", low), ("B", y)):
                key = f"{name}.lora_{part}.default.weight"
                self.sums[key] = self.sums.get(key, 0) + out.detach().abs().sum(0)

        return hook

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.steps += 1
        assert len(self.sums) in (8, 24)
        for name, p in trained(self.model).items():
            if name in self.sums:
                count = math.ceil(0.3 * len(p) - 1e-9)
                chosen = self.sums[name].argsort(descending=True)[:count].sort().values
                assert torch.equal(chosen, p.grad.abs().sum(1).nonzero().flatten()), name
            else:
                assert name in ("weight", "bias")  # an encoder's head is not masked
                assert p.grad.abs().sum() > 0
        self.sums = {}


RUNS = [(kind, "migu", accumulated) for kind in KINDS for accumulated in (1, 2)]
RUNS += [
    ("causal", ["agem", "migu"], 2),
    ("causal", ["lwf", "migu"], 1),
]  # with passes of their own


@pytest.mark.parametrize(("kind", "method", "accumulated"), RUNS, ids=str)
def test_the_rows_with_the_largest_outputs_keep_their_gradient(kind, method, accumulated, tmp_path):
    hand = ByHand(kind)
    steps = {"rows": 24, "gradient_accumulation_steps": accumulated}
    trainer = engine(tiny_base(kind), method, tmp_path, callbacks=[hand], **steps)
    uneven(trainer, kind)
    hand.watch(trainer)
    trainer.learn()
    assert hand.steps == 6 // accumulated


class Rows(TrainerCallback):
    """Every parameter's rows before each step, those without gradient, and those that moved."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = {
            name: (p.detach().clone(), (p.grad == 0).flatten(1).all(1))
            for name, p in trained(model).items()
            if p.dim() == 2
        }

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        after = trained(model)
        self.steps.append(
            {
                name: (masked, (after[name] != before).any(1))
                for name, (before, masked) in self.found.items()
            }
        )


def rows(kind, method, tmp_path, whole=False):
    watch = Rows()
    trainer = engine(tiny_base(kind, whole=whole), method, tmp_path, rows=16, callbacks=[watch])
    trainer.learn()
    return trainer, watch.steps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [None, "l2", "replay"])
def test_strict_rows_keep_their_bits_under_adamw_with_weight_decay(kind, more, tmp_path):
    method = [{"migu": {"strict": True}}, *([more] if more else [])]
    _, steps = rows(kind, method, tmp_path)
    for step in steps:
        for name, (masked, moved) in step.items():
            if name == "weight":
                assert moved.all()
                continue
            assert int(moved.sum()) == math.ceil(0.3 * len(moved))
            assert torch.equal(moved, ~masked)  # the pull of l2 is masked as well


def test_without_strict_momentum_and_decay_move_them_as_in_the_authors_code(tmp_path):
    _, steps = rows("causal", "migu", tmp_path)
    for masked, moved in steps[-1].values():
        assert masked.any()
        assert moved.all()


@pytest.mark.parametrize("kind", KINDS)
def test_whole_weights_have_their_linear_layers_masked_and_nothing_else(kind, tmp_path):
    watch = Rows()
    base = tiny_base(kind, whole=True)
    linear = {f"{n}.weight" for n, m in base.model.named_modules() if isinstance(m, nn.Linear)}
    trainer = engine(base, "migu", tmp_path, rows=16, callbacks=[watch])
    trainer.learn()
    linear.discard("lm_head.weight")
    assert len(linear) in (12, 14, 32)
    for name, (masked, _) in watch.steps[-1].items():
        if name in linear:
            assert int(masked.sum()) >= len(masked) - math.ceil(0.3 * len(masked)), name
        elif name in ("weight", "lm_head.weight"):
            assert not masked.any(), name


def test_a_matrix_that_is_tied_to_the_embeddings_is_left_alone(tmp_path):
    base = tiny_base("causal", whole=True)
    base.model.lm_head.weight = base.model.model.embed_tokens.weight
    trainer = engine(base, "migu", tmp_path)
    trainer.methods[0].on_train_begin(trainer.args, None, None, model=base.model)
    assert all(
        weight is not base.model.lm_head.weight for weight in trainer.methods[0].magnitudes.sums
    )


def test_the_first_task_has_no_hooks_and_a_later_one_takes_its_own_away(tmp_path):
    def hooks(model):
        return sum(len(module._forward_hooks) for module in model.modules())

    trainer, _ = rows("causal", "migu", tmp_path)
    assert hooks(trainer.base.model) == 8
    trainer.methods[0].end_task(trainer.base.model)
    assert hooks(trainer.base.model) == 0
    first = engine(tiny_base("causal"), "migu", tmp_path, memory=0, rows=4)
    first.learn()
    assert hooks(first.base.model) == 0


@pytest.mark.parametrize("size", [1, 2, 4, 8, 10, 30, 64, 100])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 0.9, 0.99])
def test_the_count_is_exact_and_a_scale_plays_no_part(size, threshold):
    sums = torch.rand(size, generator=torch.Generator().manual_seed(size))
    mask = largest(sums, threshold)
    percent = 100 - round(100 * threshold)
    assert int(mask.sum()) == -(-percent * size // 100)
    assert mask.all() or sums[mask].min() > sums[~mask].max()
    assert torch.equal(largest(1024 * sums, threshold), mask)
    quantile = sums >= torch.quantile(sums, threshold)
    assert 0 <= int(mask.sum()) - int(quantile.sum()) <= 1  # the authors' rule


def test_equal_sums_are_kept_together():
    assert largest(torch.tensor([0.0, 2.0, 1.0, 1.0, 1.0]), 0.6).tolist() == [0, 1, 1, 1, 1]
    assert largest(torch.zeros(10), 0.7).all()


def test_what_it_cannot_do_is_told_in_one_line(tmp_path):
    with pytest.raises(PerdureError, match="0 <= threshold < 1"):
        MIGU(threshold=1.0)
    with pytest.raises(PerdureError, match=r"set adapter.use_dora=false"):
        MIGU().check(Config(adapter={"use_dora": True}), "causal")
    trainer = engine(tiny_base("causal"), "migu", tmp_path)
    for p in trainer.base.model.parameters():
        p.requires_grad_(False)
    with pytest.raises(PerdureError, match="no linear layer is trained"):
        trainer.methods[0].on_train_begin(trainer.args, None, None, model=trainer.base.model)
