"""Checkpoints stored as what they have other than their base, and restored."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from command import perdure, refused, tree
from merging.models import save_adapter, save_expert, stopped_again_and_again, weights_of
from perdure.api import init, merge, pack, unpack
from perdure.lineage.lineage import Lineage
from perdure.merging import pack as packing
from perdure.merging.fold import pieces
from tiny import save_tiny


pytestmark = pytest.mark.own
WEIGHTS = "model.safetensors"
MATRIX = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def made_packable(tmp_path_factory):
    """`few` differs from a base in bf16 in one element of seven, `all` in every element."""
    folder = tmp_path_factory.mktemp("packable")
    save_tiny("causal", folder / "other")
    for name, step in (("base", 0.0), ("all", 0.01)):
        save_expert(folder / name, 1, step=step, dtype=torch.bfloat16)
    shutil.copytree(folder / "all", folder / "few")
    base, every = weights_of(folder / "base"), weights_of(folder / "all")
    few = {}
    for name, tensor in base.items():
        flat, changed = tensor.clone().flatten(), every[name].flatten()
        flat[::7] = changed[::7]
        few[name] = flat.view(tensor.shape)
    few["model.norm.weight"] = base["model.norm.weight"].clone()
    few[MATRIX][0, 0] = -0.0  # the same number as 0, in other bits
    base[MATRIX][0, 0] = 0.0
    for name, tensors in (("base", base), ("few", few)):
        save_file(tensors, folder / name / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.fixture
def store(made_packable, tmp_path, monkeypatch):
    shutil.copytree(made_packable, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def bits(folder: str) -> dict[str, torch.Tensor]:
    return {name: tensor.view(torch.int16) for name, tensor in weights_of(folder).items()}


def assert_same_bits(one: str, other: str) -> None:
    first, second = bits(one), bits(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("codec", ["sparse", "raw"])
@pytest.mark.parametrize("name", ["few", "all", "base"])
def test_what_is_packed_is_restored_bit_by_bit(codec, name, store):
    before = tree(store / "base")
    result = pack(name, "pack", base="base", codec=codec)
    assert result["exact"]
    assert result["kept"] == 1.0
    told = perdure("unpack", "pack", "restored")
    assert told.status == 0, told.err
    assert (
        "restored: a plain model, whose weights are bit by bit those that were packed" in told.out
    )
    assert_same_bits("restored", name)
    assert tree(store / "base") == before
    wanted = {"few": {"sparse": {"same", "sparse"}, "raw": {"same", "raw"}}}
    kinds = wanted.get(name, {}).get(codec, {"same"} if name == "base" else {"raw"})
    assert set(result["codecs"]) <= kinds | {"raw"}
    assert set(result["codecs"]) >= kinds
    if (name, codec) == ("few", "sparse"):
        assert result["bytes"] < 0.75 * result["bytes_of_checkpoint"]


@pytest.mark.parametrize("rule", ["ties", "dare", "opcm"])
def test_a_pack_is_merged_as_its_checkpoint(rule, store):
    pack("few", "pack", base="base")
    merge(["few", "all"], rule, base="base", into="whole")
    merge(["pack", "all"], rule, into="packed")  # the pack names the base
    assert tree(Path("packed"))[WEIGHTS] == tree(Path("whole"))[WEIGHTS]


def test_a_pack_arrives_in_a_lineage(store):
    pack("few", "pack", base="base")
    init("lineage", base="base", method="sequential", adapter=None)
    shutil.copytree("lineage", "other-lineage")
    states = []
    for lineage, name in (("lineage", "few"), ("other-lineage", "pack")):
        entry = merge([lineage, name], "ema", name="task")
        states.append(entry["files"]["merge.safetensors"])
        assert Lineage(lineage).stages[-1]["stage"] == 1
    assert states[0] == states[1]


def test_a_low_rank_keeps_the_share_of_the_squares(store):
    said: list[str] = []
    full = pack("all", "full", base="base", codec="lowrank", energy=1.0, say=said.append)
    assert full["exact"]  # all directions are no smaller than the matrix, so none is cut
    matrices = sum(tensor.dim() == 2 for tensor in weights_of("all").values())
    assert f"note: {matrices} of {matrices} matrices that differ are stored whole" in said[-1]
    assert "a smaller --energy keeps fewer" in said[-1]
    base, every = weights_of("base"), weights_of("all")
    generator = torch.Generator().manual_seed(5)
    change = torch.randn(64, 2, generator=generator) @ torch.randn(2, 32, generator=generator)
    noise = 0.01 * torch.randn(64, 32, generator=generator)
    every[MATRIX] = (base[MATRIX].float() + change + noise).to(torch.bfloat16)
    save_file(every, "all/model.safetensors", metadata={"format": "pt"})
    result = pack("all", "small", base="base", codec="lowrank", energy=0.9, say=said.append)
    about = json.loads(Path("small/pack.json").read_text())
    assert about["tensors"][MATRIX]["codec"] == "lowrank"
    assert result["codecs"]["lowrank"] == 1
    assert f"note: {matrices - 1} of {matrices} matrices" in said[-1]
    stored = load_file("small/pack.safetensors")
    rank = stored[f"up.{MATRIX}"].shape[1]
    tau = every[MATRIX].float() - base[MATRIX].float()
    s = torch.linalg.svdvals(tau).double().square()
    assert s[:rank].sum() / s.sum() >= 0.9
    assert s[: rank - 1].sum() / s.sum() < 0.9
    kept = stored[f"up.{MATRIX}"] @ stored[f"down.{MATRIX}"]
    lost = (tau - kept).double().square().sum()
    torch.testing.assert_close(lost, s[rank:].sum(), rtol=1e-4, atol=1e-6)
    assert not result["exact"]
    assert 0.9 <= result["kept"] < 1
    unpack("small", "restored")
    for name, weights in weights_of("restored").items():
        if about["tensors"][name]["codec"] != "lowrank":
            assert torch.equal(weights, every[name])
    wanted = (base[MATRIX].float() + kept).to(torch.bfloat16)
    torch.testing.assert_close(weights_of("restored")[MATRIX], wanted, rtol=1e-2, atol=1e-3)
    merge(["small"], "task_arithmetic", into="merged", dtype="float32")
    torch.testing.assert_close(weights_of("merged")[MATRIX], base[MATRIX].float() + kept)


def test_elements_are_found_in_any_block_and_piece(store, monkeypatch):
    """With blocks and pieces that do not fit each other."""
    pack("few", "usual", base="base")
    monkeypatch.setattr(packing, "BLOCK", 64)
    monkeypatch.setattr(packing, "pieces", lambda shape: pieces(shape, 40))
    pack("few", "pack", base="base")
    unpack("pack", "restored")
    assert_same_bits("restored", "few")
    merge(["few"], "ties", base="base", into="whole")
    merge(["pack"], "ties", into="packed")
    assert tree(Path("packed"))[WEIGHTS] == tree(Path("whole"))[WEIGHTS]


def test_a_stopped_pack_goes_on(store):
    pack("few", "once", base="base")
    stopped_again_and_again(lambda: pack("few", "pack", base="base"), Path("pack"))
    assert tree(Path("pack")) == tree(Path("once"))
    stopped_again_and_again(lambda: unpack("pack", "restored"), Path("restored"))
    assert_same_bits("restored", "few")
    assert not list(Path().glob(".*"))


def test_packs_that_do_not_fit_are_refused(store):
    pack("few", "pack", base="base")
    broken = weights_of("few")
    broken["model.norm.weight"][0] = float("nan")
    shutil.copytree("few", "broken")
    save_file(broken, f"broken/{WEIGHTS}", metadata={"format": "pt"})
    for codec in ("sparse", "raw", "lowrank"):
        refused(
            *(store, "pack", "broken", "out", "--base", "base", "--codec", codec),
            names=("model.norm.weight", "infinite or not numbers"),
        )

    def bad(*words: str, given: tuple[object, ...]) -> None:
        refused(store, *given, names=words)

    other = ("is a pack on another base, 'base'", "its hashes are not those of all")
    bad(*other, given=("unpack", "pack", "out", "--base", "all"))
    bad(*other, given=("merge", "pack", "--base", "all", "--into", "out"))
    bad("few: is no pack; `perdure pack` makes one", given=("unpack", "few", "out"))
    bad(
        "pack: is a pack already; give a whole model",
        given=(*("pack", "pack", "out", "--base", "base"),),
    )
    bad("base: give the model from which it was trained", given=("pack", "few", "out"))
    bad(
        "codec 'zip' is not a choice",
        given=(*("pack", "few", "out", "--base", "base", "--codec", "zip"),),
    )
    bad(
        "energy: must be > 0 and <= 1, got 2",
        given=(*("pack", "few", "out", "--base", "base", "--energy", 2),),
    )
    bad("few: exists and is not empty", given=("pack", "all", "few", "--base", "base"))
    save_adapter("adapter", 1)
    bad(
        "is a LoRA adapter, which is small already",
        given=(*("pack", "adapter", "out", "--base", "base"),),
    )
    file = Path("pack/pack.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    bad("pack.safetensors is not the file that pack.json describes", given=("unpack", "pack", "o"))
    file.write_bytes(content)
    Path("pack/pack.json").write_text("{}")
    bad("pack.json: does not load", given=("unpack", "pack", "out"))
