"""The interference of an arrival, against the two changes as plain tensors."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_merge_arrival import base_weights, merged_weights, trained_adapter
from torch import Tensor

from command import perdure
from perdure.api import init, merge, report, show, verify
from perdure.lineage.lineage import Lineage
from perdure.merging import factors
from perdure.merging.observed import interference
from tiny import tiny_model, tiny_tokenizer


pytestmark = pytest.mark.own
causal = pytest.mark.parametrize("kind", ["causal"])


def changes(weights: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: (weights[name] - base[name]).double() for name in base if name in weights}


def wanted(
    arrival: dict[str, Tensor], merged: dict[str, Tensor], names: Iterable[str]
) -> list[float]:
    """The cosine, and the share of opposite signs by magnitude, over some tensors."""
    tau, before = (
        torch.cat([parts[name].flatten() for name in names]) for parts in (arrival, merged)
    )
    cosine = torch.nn.functional.cosine_similarity(tau, before, dim=0)
    against = tau.abs()[tau.sign() * before.sign() < 0].sum() / tau.abs().sum()
    return [cosine.item(), against.item()]


def assert_interference(
    entry: dict, arrival: dict[str, Tensor], merged: dict[str, Tensor], tolerance: float = 1e-4
) -> None:
    """A stage has the interference of these two changes, in all and by layer."""
    found = entry["interference"]
    everything = wanted(arrival, merged, merged)
    assert [found["cosine"], found["against"]] == pytest.approx(everything, abs=tolerance)
    layers: dict[str, Callable[[str], bool]] = {
        "0": lambda name: ".layers.0." in name,
        "1": lambda name: ".layers.1." in name,
    }
    for layer, is_in in layers.items():
        names = [name for name in merged if is_in(name)]
        assert found["layers"][layer] == pytest.approx(
            wanted(arrival, merged, names), abs=tolerance
        )


def save_expert(folder: str, seed: int | None) -> dict[str, Tensor]:
    model = tiny_model("causal")
    generator = torch.Generator().manual_seed(seed or 0)
    with torch.no_grad():
        for parameter in model.parameters() if seed is not None else ():
            parameter += 0.01 * (0.2 + torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    tiny_tokenizer("causal").save_pretrained(folder)
    return load_file(f"{folder}/model.safetensors")


@pytest.mark.parametrize("rule", ["task_arithmetic", pytest.param("opcm", marks=pytest.mark.slow)])
def test_whole_weights_are_compared_with_what_was_merged_before(rule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, _, y = (save_expert(name, seed) for name, seed in (("base", None), ("x", 1), ("y", 2)))
    init("lineage", base="base", method="sequential", adapter=None, guard=None)
    assert "interference" not in merge(["lineage", "x"], rule=rule)
    folder = Lineage("lineage").folder(Lineage("lineage").stages[-1])
    before = changes(load_file(folder / "model.safetensors"), base)
    entry = merge(["lineage", "y"], rule=rule)
    assert_interference(entry, changes(y, base), before)
    layers = entry["interference"]["layers"]
    assert set(layers) == {"0", "1", "other"}
    assert verify("lineage") == []


@causal
def test_adapters_are_compared_in_pieces_of_rows(place, monkeypatch):
    monkeypatch.setattr(factors, "PIECE", 100)
    first, second = trained_adapter("first", 1), trained_adapter("second", 2)
    base = base_weights()
    stage = Lineage("lineage").folder(Lineage("lineage").stages[-1])
    entry = merge(["lineage", first], rule="average", rank=14)
    assert_interference(
        entry,
        changes(merged_weights(first), base),
        changes(merged_weights(stage), base),
        tolerance=2e-3,
    )
    stage = Lineage("lineage").folder(entry)
    entry = merge(["lineage", second], rule="average", rank=14)
    assert_interference(
        entry,
        changes(merged_weights(second), base),
        changes(merged_weights(stage), base),
        tolerance=2e-3,
    )
    found = entry["interference"]
    shown = " ".join(perdure("show", "lineage").out.split())
    assert f"interference cosine {found['cosine']:.2f} with what was merged before" in shown
    assert f"by layer 0: {found['layers']['0'][0]:.2f}, {found['layers']['0'][1]:.0%}; 1: " in shown
    assert show("lineage")["interference"] == found
    report("lineage")
    page, text = (Path(f"report.{ending}").read_text() for ending in ("html", "md"))
    assert "Interference of second, merged in stage 4, by layer" in page
    assert f"{found['against']:.0%} of its change has the opposite sign" in page
    assert f"| 4 second | {found['cosine']:.2f} | {found['against']:.0%} |" in text


def test_layers_of_two_stacks_and_of_none_have_names_of_their_own():
    sums = {"product": -1.0, "arrival": 4.0, "merged": 1.0, "against": 3.0, "total": 4.0}
    nothing = dict.fromkeys(sums, 0.0)
    names = ["encoder.block.1.q", "decoder.block.0.q", "shared.weight"]
    found = interference({name: sums for name in names} | {"decoder.block.0.k": nothing})
    half = [-0.5, 0.75]
    assert found == {
        "cosine": -0.5,
        "against": 0.75,
        "layers": {"encoder 1": half, "decoder 0": half, "other": half},
    }
    found = interference({"h.11.w": sums, "h.2.w": nothing})
    assert found is not None
    assert found["layers"] == {"11": half, "2": [0.0, 0.0]}
    assert interference({"h.0.w": {}}) is None
