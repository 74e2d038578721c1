"""The bank: a second adapter beside the first, and both joined into one by rank."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from marks import at_least
from perdure import methods
from perdure.config import Config, load_config
from perdure.errors import PerdureError
from perdure.methods.shared import adapter_bank
from perdure.methods.shared.lora import factors
from perdure.models.base import Base
from perdure.train.memory import Memory
from perdure.train.method import TaskContext
from perdure.train.parameters import snapshot, trained
from place import output
from tiny import KINDS, tiny_model, tiny_tokenizer
from train.engine import engine, tiny_base


pytestmark = pytest.mark.own


def filled(base: Base) -> None:
    """Another B than zero in the new adapter."""
    torch.manual_seed(1)
    for name, p in base.model.named_parameters():
        if "lora_B.new" in name:
            torch.nn.init.normal_(p, std=0.1)


def said(base: Base) -> torch.Tensor:
    return output(base.network, base.tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing_and_is_trained_alone(kind):
    base = tiny_base(kind)
    before, live = said(base), trained(base.model)
    adapter_bank.add(base.model, 3, seed=5)
    assert torch.equal(said(base), before)
    now = trained(base.model)
    assert {n.replace(".new.", ".default.") for n in now} == set(live)
    assert not [n for n in now if ".default." in n]
    assert {p.shape[0] for n, p in now.items() if "lora_A" in n} == {3}
    assert {f.scaling for f in factors(base.model, adapter_bank.NEW).values()} == {8 / 4}


@pytest.mark.parametrize("kind", KINDS)
def test_joined_they_give_what_they_gave_beside_each_other(kind):
    base = tiny_base(kind)
    names = set(trained(base.model))
    for turn, r in enumerate((4, 2, 4)):
        old = {name: (f.a.clone(), f.b.clone()) for name, f in factors(base.model).items()}
        adapter_bank.add(base.model, r, seed=turn)
        filled(base)
        new = {
            n: (f.a.clone(), f.b.clone()) for n, f in factors(base.model, adapter_bank.NEW).items()
        }
        apart = said(base)
        adapter_bank.join(base.model)
        torch.testing.assert_close(said(base), apart, atol=1e-5, rtol=1e-5)
        for name, (a, b, scaling) in factors(base.model).items():
            assert torch.equal(a, torch.cat([old[name][0], new[name][0]]))
            assert torch.equal(b, torch.cat([old[name][1], new[name][1]], 1))
            assert (scaling, a.is_contiguous(), b.is_contiguous()) == (2.0, True, True)
    settings = base.peft.peft_config
    assert list(settings) == base.peft.active_adapters == [base.peft.active_adapter] == ["default"]
    assert (settings["default"].r, settings["default"].lora_alpha) == (14, 28)
    assert set(trained(base.model)) == names
    assert not torch.equal(said(base), apart.zero_())


def test_the_first_factors_are_drawn_from_the_seed_alone():
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        base = tiny_base("causal")
        torch.rand(seed)
        adapter_bank.add(base.model, 3, seed)
        return snapshot(base.model)

    state = torch.get_rng_state()
    one, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert all(torch.equal(one[n], other[n]) == ("lora_B" in n) for n in one)
    torch.set_rng_state(state)
    adapter_bank.add(tiny_base("causal").model, 3, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_loads_with_plain_peft_and_merges(tmp_path):
    base = tiny_base("causal")
    adapter_bank.add(base.model, 4, 0)
    filled(base)
    adapter_bank.join(base.model)
    live = said(base)
    base.peft.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(tiny_model("causal"), str(tmp_path))
    assert torch.equal(output(loaded, base.tokenizer), live)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(output(merged, base.tokenizer), live, atol=1e-5, rtol=1e-5)


def test_weights_held_transposed():
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    tokenizer = tiny_tokenizer("causal")
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes))
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    base = Base("gpt2", "causal", get_peft_model(plain, config), tokenizer)  # type: ignore[arg-type]
    adapter_bank.add(base.model, 2, 0)
    filled(base)
    apart = said(base)
    adapter_bank.join(base.model)
    torch.testing.assert_close(said(base), apart, atol=1e-5, rtol=1e-5)


def test_an_embedding_is_refused():
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"])
    model = get_peft_model(tiny_model("causal"), config)
    with pytest.raises(
        PerdureError, match=r"embed_tokens is not a linear layer.*target_modules"
    ) as caught:
        adapter_bank.rank(model)
    assert "\n" not in str(caught.value)


BANKS = ("inflora", "olora")


@pytest.mark.parametrize("name", BANKS)
@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"modules_to_save": ["lm_head"]},
        {"target_parameters": ["weight"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": False},
        {"lora_bias": True},
        {"bias": "all"},
        {"trainable_token_indices": [1]},
    ],
    ids=str,
)
def test_settings_whose_rank_cannot_grow_are_refused_in_one_line(name, settings):
    (method,) = methods.make(name)
    plain = {"r": 4, "use_dora": False, "bias": "none", "init_lora_weights": "gaussian"}
    method.check(load_config({"method": name, "adapter": plain}), "causal")
    with pytest.raises(PerdureError, match=f"{name}: .*{next(iter(settings))}") as caught:
        method.check(load_config({"method": name, "adapter": settings}), "causal")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BANKS)
def test_what_follows_weights_over_tasks_is_refused_beside_it(name):
    methods.make([name, "replay", "lwf", "recurrent_kif", "hft", "dmt"])
    for other in ("l2", "ewc", "mas", "wise_ft", "slao", "tasl", "fpf"):
        with pytest.raises(PerdureError, match=f"leave {other} out"):
            methods.make([name, other])
    with pytest.raises(PerdureError, match=f"{name} makes .* name it first"):
        methods.make(["replay", name])
    (method,) = methods.make(name)
    with pytest.raises(PerdureError, match="set adapter="):
        method.check(load_config({"method": name, "adapter": None}), "causal")


@pytest.mark.parametrize("name", BANKS)
@pytest.mark.parametrize(
    "more", at_least(["replay", "lwf"], ["replay", "lwf", "recurrent_kif", "hft", "migu"])
)
def test_it_composes_with_rehearsal_and_distillation(name, more, tmp_path):
    outputs = []
    for spec in ([name], [name, more]):
        base = tiny_base("causal", 0.1)
        trainer = engine(base, spec, tmp_path, rows=16)
        trainer.learn()
        for method in trainer.methods:
            method.end_task(base.model)
        outputs.append(said(base))
    assert not torch.allclose(*outputs)
    assert outputs[1].isfinite().all()


@pytest.mark.parametrize("name", BANKS)
def test_a_task_has_the_rank_of_the_settings_whatever_was_joined_before(name):
    base = tiny_base("causal")
    for _ in range(2):
        adapter_bank.add(base.model, 4, 0)
        adapter_bank.join(base.model)
    assert adapter_bank.rank(base.model) == 12
    for settings, rank in (({"r": 4}, 4), ({}, 8)):
        method = methods.make(name)[0]
        method.check(Config(adapter=settings), "causal")
        context = TaskContext("next", 4, 3, Memory({}, 5), {}, is_newest=False)
        method.begin_task(base.model, context)
        assert method.rank == rank
        assert {len(f.a) for f in factors(base.model, adapter_bank.NEW).values()} == {rank}
        base.peft.delete_adapter(adapter_bank.NEW)
