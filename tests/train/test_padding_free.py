"""Rows packed end to end, without padding: no row sees another, and the steps are the same."""

import pytest
import torch

from marks import at_least
from perdure.data.tokens import Collator
from perdure.errors import PerdureError
from perdure.models.base import load_base
from perdure.models.padding import can_pack
from perdure.train.arguments import check_training
from place import learned, setting_for
from train.engine import engine, tiny_base, weights
from zoo import ARCHITECTURES, make


pytestmark = pytest.mark.own


METHODS = [
    "sequential",
    "replay",
    {"recurrent_kif": {"inner_steps": 4, "outer_steps": 2}},
    ["replay", "kl_base"],
    "lwf",
    "ewc",
    "der",
    "migu",
    "agem",
    "olora",
    "feature_distillation",
    "self_replay",
]
CAUSAL = [name for name, (kind, _) in ARCHITECTURES.items() if kind == "causal" and name != "xlstm"]
# Others have no positions, a state that goes from one row to the next, or a mask of the greatest
# length of a text, which several texts together exceed.
APART = {"llama", "gpt2", "gemma2", "qwen3"}
UNEVEN = [[5, 6, 7], [8] * 9, [9, 5, 6, 4]]


def uneven(n: int) -> list[dict]:
    return [
        {"input_ids": [5, 6] + [7] * (i % 6), "labels": [-100] + [6 + i % 3] * (1 + i % 6)}
        for i in range(n)
    ]


def final(method, work, padding_free, **settings):
    base = tiny_base("causal")
    trainer = engine(base, method, work, **settings)
    trainer.train_dataset = uneven(24)
    trainer.collate.padding_free = trainer.rehearsal.collator.padding_free = padding_free
    trainer.learn()
    return weights(base), trainer


@pytest.mark.parametrize("method", at_least(METHODS[:3], METHODS), ids=str)
def test_the_weights_are_those_of_padded_rows(method, tmp_path):
    expected, _ = final(method, tmp_path / "padded", False)
    packed, _ = final(method, tmp_path / "packed", True)
    before = weights(tiny_base("causal"))
    for name, tensor in expected.items():
        torch.testing.assert_close(packed[name], tensor, atol=1e-5, rtol=0)
    assert any(
        name not in before or not torch.equal(expected[name], before[name]) for name in expected
    )


def test_a_batch_is_one_sequence_without_padding():
    rows = [{"input_ids": ids, "labels": ids} for ids in UNEVEN]
    batch = Collator(tiny_base("causal").tokenizer, "causal", padding_free=True)(rows)
    assert batch["input_ids"].tolist() == [[i for ids in UNEVEN for i in ids]]
    assert batch["position_ids"].tolist() == [[*range(3), *range(9), *range(4)]]
    assert batch["labels"][0].tolist() == [-100, 6, 7, -100, *[8] * 8, -100, 5, 6, 4]
    assert "attention_mask" not in batch


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", at_least(["llama", "gpt2", "gpt_neo", "mamba", "bloom"], CAUSAL))
def test_a_model_packs_rows_only_if_none_of_them_changes_another(name, tmp_path):
    base = load_base(str(make(name, tmp_path, std=0.3)), None, 0)
    model = base.model.eval()
    if not can_pack(model, base.tokenizer, base.limits):
        assert name not in APART
        return
    assert name not in ("gpt_neo", "mamba", "bloom")
    collate = Collator(base.tokenizer, "causal", padding_free=True)

    def logits(first):
        rows = [{"input_ids": ids, "labels": ids} for ids in (first, *UNEVEN[1:])]
        batch = collate(rows)
        del batch["labels"]
        with torch.no_grad():
            return model(**batch).logits[0, len(first) :]

    for ids in UNEVEN[1:]:
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([ids])).logits[0]
        start = 0 if ids is UNEVEN[1] else 9
        packed = logits(UNEVEN[0])[start : start + len(ids)]
        torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits([4, 4, 9]), logits(UNEVEN[0]), atol=1e-5, rtol=1e-5)


def test_a_run_counts_as_many_rows_and_answers_alike(tmp_path):
    setting = setting_for("causal", tmp_path, n=24) | {"method": "replay"}
    lineages = []
    for padding_free in (False, True):
        training = {**setting["training"], "padding_free": padding_free}
        lineages.append(learned(setting, tmp_path / str(padding_free), training=training))
    padded, packed = lineages
    for number in ("1", "2"):
        assert packed.timings()[number]["rows"] == padded.timings()[number]["rows"]
    assert packed.ledger[-1]["scores"] == padded.ledger[-1]["scores"]


def test_one_that_cannot_is_refused_with_what_to_write_instead(tmp_path):
    setting = setting_for("encoder", tmp_path, n=8)
    training = {**setting["training"], "padding_free": True}
    with pytest.raises(PerdureError, match=r"padding_free: .* train_sampling_strategy: group_by"):
        learned(setting, tmp_path / "lineage", training=training)


def test_the_key_takes_true_or_false():
    check_training({"padding_free": True})
    with pytest.raises(PerdureError, match="padding_free takes bool, got 3"):
        check_training({"padding_free": 3})


@pytest.mark.parametrize(
    ("training", "line"),
    [
        (
            {"train_sampling_strategy": "group_by_lenght"},
            "no 'group_by_lenght'; did you mean 'group_by_length'",
        ),
        ({"group_by_length": True}, "calls it train_sampling_strategy=group_by_length"),
        ({"packing": True}, "padding_free=true packs those of a batch"),
    ],
    ids=str,
)
def test_the_old_and_the_misspelt_names_are_told(training, line):
    with pytest.raises(PerdureError, match=line):
        check_training(training)
