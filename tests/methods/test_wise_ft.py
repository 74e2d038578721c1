"""WiSE-FT: the average, by its formula."""

import math

import pytest
import torch

from command import perdure
from perdure.api import run, show
from perdure.config import Config, Memory
from perdure.errors import PerdureError
from perdure.methods import keywords, make, wise_ft
from perdure.methods.shared.written_rows import write_rows
from perdure.seeds import derive
from perdure.train.parameters import snapshot
from perdure.train.passes import Passes
from perdure.verbs.methods import spelled
from place import setting_for
from tiny import KINDS
from train.engine import engine, same, tiny_base


pytestmark = pytest.mark.own


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("share", "new"), [(0.25, 0.25), (None, 0.5), (0.0, 0.0)])
def test_the_weights_are_the_average_with_the_stage_before(kind, share, new, tmp_path):
    base = tiny_base(kind)
    trainer = engine(base, {"wise_ft": {"share": share}}, tmp_path)  # the second stage
    before = snapshot(base.model)
    trainer.learn()
    learned = snapshot(base.model)
    trainer.methods[0].end_task(base.model)
    for name, tensor in snapshot(base.model).items():
        torch.testing.assert_close(tensor, (1 - new) * before[name] + new * learned[name])


def test_a_mean_of_all_stages_by_one_over_t():
    stages, mean = torch.randn(5, 3), torch.zeros(3)
    for t, stage in enumerate(stages, start=1):
        mean = torch.lerp(mean, stage, 1 / t)
    torch.testing.assert_close(mean, stages.mean(0))


def test_new_rows_of_a_head_stay_as_learned(tmp_path):
    base = tiny_base("encoder")
    trainer = engine(base, {"wise_ft": {"share": 0.0}}, tmp_path)
    trainer.methods[0].labels = torch.tensor(4)
    before = snapshot(base.model)
    trainer.learn()
    learned = snapshot(base.model)
    trainer.methods[0].end_task(base.model)
    assert torch.equal(base.model.weight[:4], before["weight"][:4])
    assert torch.equal(base.model.weight[4:], learned["weight"][4:])


@torch.no_grad()
def loss_of(base, rows) -> float:
    """The mean cross-entropy of the rows' answers, one row at a time."""
    losses = []
    for row in rows:
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        if base.kind == "encoder":
            mask = torch.ones_like(ids)
            logits = base.model(input_ids=ids, attention_mask=mask).logits
            targets = labels.flatten()
        elif base.kind == "causal":
            logits, targets = base.model(input_ids=ids).logits[:, :-1], labels[:, 1:]
        else:
            logits, targets = base.model(input_ids=ids, labels=labels).logits, labels
        flat = logits.reshape(-1, logits.shape[-1])
        losses.append(torch.nn.functional.cross_entropy(flat, targets.reshape(-1)).item())
    return sum(losses) / len(losses)


def set_share(model, before, learned, share: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in before:
                parameter.copy_((1 - share) * before[name] + share * learned[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance", [1.0, 1.002, 1e9])
def test_a_probe_takes_the_largest_share_that_keeps_the_old_rows(kind, tolerance, tmp_path):
    base = tiny_base(kind)
    method = {"wise_ft": {"probe": "memory", "tolerance": tolerance}}
    trainer = engine(base, method, tmp_path, learning_rate=5e-2)
    before = snapshot(base.model)
    trainer.learn()
    learned = snapshot(base.model)
    base.model.eval()
    rows = trainer.methods[0].context.memory.tasks["animal"]
    losses = {}
    for tenths in range(11):
        set_share(base.model, before, learned, tenths / 10)
        losses[tenths] = loss_of(base, rows)
    bound = min(losses.values()) + math.log(tolerance)
    expected = max(tenths for tenths, loss in losses.items() if loss <= bound) / 10
    assert expected < 1 or tolerance > 2
    set_share(base.model, before, learned, 1.0)
    trainer.methods[0].end_task(base.model)
    for name, tensor in snapshot(base.model).items():
        torch.testing.assert_close(tensor, (1 - expected) * before[name] + expected * learned[name])
        assert tolerance < 2 or torch.equal(tensor, learned[name])


def test_the_base_can_write_the_rows_of_the_probe(tmp_path, monkeypatch):
    """They are those that `self_replay` would get from the base."""
    base = tiny_base("causal")
    trainer = engine(base, {"wise_ft": {"probe": "base", "tolerance": 1.0}}, tmp_path)
    trainer.learn()
    seen = []
    monkeypatch.setattr(
        wise_ft, "surprise", lambda _, rows, size: seen.append(rows) or [float(len(seen))]
    )
    trainer.methods[0].end_task(base.model)
    rows = write_rows(
        tiny_base("causal"), Passes(), rows=32, source="base", seed=derive(3, "write"),
        max_new_tokens=64,
    )  # fmt: skip
    assert rows
    assert seen == [rows] * 11  # of the shares 1, 0.9, ..., of which the first has the least loss


def test_a_probe_without_rows_changes_nothing(tmp_path):
    base = tiny_base("causal")
    trainer = engine(base, {"wise_ft": {"probe": "memory"}}, tmp_path)
    trainer.learn()
    learned = snapshot(base.model)
    trainer.methods[0].context.memory.tasks.clear()
    with pytest.warns(UserWarning, match="the probe memory has no rows"):
        trainer.methods[0].end_task(base.model)
    assert same(snapshot(base.model), learned)


@pytest.mark.parametrize(
    ("losses", "share"),
    [
        ([float("nan"), 2.0, 1.8, *[1.8] * 8], 0.8),
        ([2.0, 1.9, float("inf"), *[1.8] * 8], 0.7),
    ],
)
@torch.no_grad()
def test_a_share_whose_loss_is_not_finite_is_not_taken(losses, share, tmp_path, monkeypatch):
    base = tiny_base("causal")
    trainer = engine(base, {"wise_ft": {"probe": "memory", "tolerance": 1.0}}, tmp_path)
    method, values = trainer.methods[0], iter(losses)
    monkeypatch.setattr(method, "_loss", lambda rows: next(values))
    assert method.rehearses
    assert method._share(base.model, snapshot(base.model)) == share
    monkeypatch.setattr(method, "_loss", lambda rows: float("nan"))
    with pytest.warns(UserWarning, match="not finite with any share"):
        assert method._share(base.model, snapshot(base.model)) == 1.0


@pytest.mark.parametrize(
    ("given", "config", "kind", "line"),
    [
        ({"tolerance": 0.9}, Config(), "causal", "tolerance must be >= 1, got 0.9"),
        (
            {"probe": "memory"},
            Config(memory=Memory(ratio=0)),
            "causal",
            "memory.ratio is 0; set memory.ratio=0.05",
        ),
        ({"probe": "base"}, Config(), "encoder", "writes nothing .* use probe memory"),
        (
            {"probe": "base"},
            Config(adapter=None),
            "causal",
            "adapter disabled .* set adapter={}, or use probe memory",
        ),
    ],
)
def test_probes_that_cannot_work_are_refused(given, config, kind, line):
    with pytest.raises(PerdureError, match=line):
        make({"wise_ft": given})[0].check(config, kind)


def test_the_types_of_its_keywords_are_told_as_a_yaml_has_them():
    types = {keyword["name"]: keyword["type"] for keyword in spelled(keywords("wise_ft"))}
    assert types == {"share": "float | null", "probe": "memory | base | null", "tolerance": "float"}


def test_the_share_that_a_probe_chose_is_told(tmp_path, monkeypatch):
    """By the stage that chose it; the first task has none."""
    monkeypatch.chdir(tmp_path)
    made = {**setting_for("causal", tmp_path, n=16), "guard": None, "max_length": 64}
    run({**made, "method": {"wise_ft": {"probe": "memory"}}}, lineage="probed")
    assert show("probed", 1)["state"] == {}
    (share,) = show("probed")["state"].values()
    assert round(10 * share, 4) in range(11)
    assert f"wise_ft.share {share:g}" in perdure("show", "probed").out
