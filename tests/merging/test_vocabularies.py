"""Merging checkpoints of other vocabularies: rows are aligned by token."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, normalizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from command import perdure, refused
from marks import at_least
from merging.models import save_adapter, save_expert, stopped_again_and_again, weights_of
from perdure.api import init, merge, pack, show, verify
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.merging import streamed
from perdure.merging.alignment import Alignment, matched
from perdure.merging.checkpoint import Tensors
from perdure.merging.fold import pieces
from perdure.merging.model import Model
from perdure.merging.rules import names as rule_names
from perdure.reporting.rerun import rerun
from tiny import save_tiny, tiny_model, tiny_tokenizer
from zoo import ARCHITECTURES, make


pytestmark = pytest.mark.own
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENS = len(tiny_tokenizer("causal"))  # 35
# What draws at random depends on the bytes of the files, which are others.
PURE = [rule for rule in rule_names() if rule not in ("dare", "fisher", "regmean", "frank_wolfe")]
NEW = ["<|call|>", "<|end|>", "<|start|>"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabularies")
    save_tiny("causal", folder / "base")
    for seed, name in enumerate("xyz", start=1):
        save_expert(folder / name, seed)
    permuted(folder / "x", folder / "px", seed=0)
    permuted(folder / "y", folder / "py", seed=1)
    with_tokens(folder / "y", folder / "wide", NEW[:2], seed=5)
    with_tokens(folder / "z", folder / "wider", [NEW[2], NEW[1]], seed=6)
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def permuted(folder: Path | str, to: Path | str, seed: int) -> None:
    """Copy a model, and give its tokens other ids: row j of the copy is row order[j]."""
    folder, to = Path(folder), Path(to)
    shutil.copytree(folder, to)
    spelled = json.loads((folder / "tokenizer.json").read_text())
    count = len(spelled["model"]["vocab"])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    new_id = order.argsort().tolist()
    spelled["model"]["vocab"] = {t: new_id[i] for t, i in spelled["model"]["vocab"].items()}
    for added in spelled["added_tokens"]:
        added["id"] = new_id[added["id"]]
    spelled["added_tokens"].sort(key=lambda added: added["id"])
    for special in ((spelled["post_processor"] or {}).get("special_tokens") or {}).values():
        special["ids"] = [new_id[i] for i in special["ids"]]
    (to / "tokenizer.json").write_text(json.dumps(spelled))
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            about = json.loads((folder / name).read_text())
            ids = {k: new_id[v] for k, v in about.items() if k.endswith("_token_id") and v}
            (to / name).write_text(json.dumps({**about, **ids}))
    tensors = {name: with_rows(tensor, count, order) for name, tensor in weights_of(folder).items()}
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})


def with_rows(tensor: Tensor, count: int, order: Tensor) -> Tensor:
    """Put the rows of a tensor that has one for each token in another order."""
    axes = [axis for axis, size in enumerate(tensor.shape) if size == count]
    return tensor.index_select(axes[0], order).contiguous() if axes else tensor


def with_tokens(folder: Path | str, to: Path | str, tokens: list[str], seed: int) -> None:
    """Copy a model, and add tokens to it, whose rows are drawn."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    before = model.config.vocab_size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for table in (model.get_input_embeddings(), model.get_output_embeddings()):
                table.weight[before:].normal_()
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)


def assert_same(out: str, other: str) -> None:
    """Two models have the same bits in their files, and the same tokenizer and config."""
    one, two = weights_of(out), weights_of(other)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    for name in ("tokenizer.json", "config.json", "generation_config.json"):
        contents = [Path(folder, name) for folder in (out, other)]
        assert len({file.read_bytes() if file.is_file() else b"" for file in contents}) == 1, name


# --- the rows of a vocabulary --------------------------------------------------------------------


@given(data=st.data())
def test_rows_are_matched_by_token_and_padding_by_its_place(data):
    tokens = st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=8)
    vocabularies, counts = [], []
    for _ in range(2):
        words = data.draw(tokens)
        count = data.draw(st.integers(max(1, len(words) - 2), 14))
        ids = data.draw(st.permutations(range(14)))[: len(words)]
        vocabularies.append(dict(zip(words, ids, strict=True)))
        counts.append(count)
    (ours, theirs), (our_count, their_count) = vocabularies, counts
    rows = matched(ours, our_count, theirs, their_count)
    of_row = {row: token for token, row in ours.items()}
    for row in range(our_count):
        if row in of_row:
            wanted = theirs.get(of_row[row], -1)
            wanted = wanted if wanted < their_count else -1
        else:
            wanted = row if row < their_count and row not in theirs.values() else -1
        assert rows[row] == wanted


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from([(9,), (9, 4), (1, 9)]),
    order=st.permutations(range(9)),
    lacking=st.sets(st.integers(0, 8)),
    most=st.integers(1, 40),
)
def test_any_piece_of_a_permuted_table_is_that_of_the_table(
    tmp_path_factory, shape, order, lacking, most
):
    file = tmp_path_factory.mktemp("rows") / "model.safetensors"
    axis = shape.index(9)
    generator = torch.Generator().manual_seed(0)
    base, other = (torch.randn(shape, generator=generator) for _ in range(2))
    save_file({"t": other.index_select(axis, torch.tensor(order)).contiguous()}, file)
    rows = torch.tensor(order).argsort().to(torch.int32)
    rows[list(lacking)] = -1
    alignment = Alignment(rows, {"t": axis}, shared=9)
    wanted = (other - base).movedim(axis, 0).clone()
    wanted[list(lacking)] = 0
    wanted = wanted.movedim(0, axis)
    tensors = Tensors([file])
    with tensors.open():
        for piece in pieces(shape, most):
            part = base[piece.index] if piece.index else base
            change = alignment.read(tensors, "t", "t", piece, part)
            assert torch.equal(change, wanted[piece.index] if piece.index else wanted)


REFUSED = {
    **dict.fromkeys(("luke", "marian"), "has a second vocabulary"),
    "gpt_neox": r"which rows of its embed_out\.weight",  # lm_head in transformers
    "canine": "is neither a causal",  # it has no tokens
}


# `phi` has a bias of the output layer, and `bart` one of shape [1, tokens].
@pytest.mark.parametrize("name", at_least(["phi", "bart"], ARCHITECTURES))
def test_the_tensors_with_tokens_are_found_in_every_architecture(name, tmp_path):
    folder = make(name, tmp_path / name)
    base = Model(str(folder))
    if name in REFUSED:
        with pytest.raises(PerdureError, match=REFUSED[name]):
            base.token_axes  # noqa: B018
        return
    count = base.config.get_text_config().vocab_size
    found = base.token_axes
    assert set(found.values()) <= {0, 1}
    for tensor, axis in found.items():
        assert base.tensors.stored[tensor].shape[axis] == count
    assert any("emb" in t or "wte" in t or "shared" in t for t in found)


# --- the base's vocabulary -----------------------------------------------------------------------


@pytest.mark.parametrize("rule", at_least(["average", "ties"], PURE))
def test_permuted_vocabularies_merge_to_the_same_bits(rule, place, monkeypatch):
    monkeypatch.setattr(streamed, "PIECE", 200)
    plain = merge(["x", "y", "z"], rule, base="base", into="out")
    lines: list[str] = []
    result = merge(
        ["px", "py", "z"], rule, base="base", into="again", vocabulary="base", say=lines.append
    )
    assert_same("out", "again")
    [about, _] = result["vocabulary"]["aligned"]
    assert (about["checkpoint"], about["shared"], about["unchanged"], about["own"]) == (
        *("px", TOKENS),
        *(0, 0),
    )
    assert (
        sum("its rows are aligned by token: 35 tokens are in both" in line for line in lines) == 2
    )
    card = (place / "again" / "README.md").read_text()
    assert "Rows of `px` were aligned with those of the base by token: 35 tokens are in" in card
    assert result["cosines"] == plain["cosines"]


@pytest.mark.parametrize(
    "name", at_least(["bart", "phi"], ["bart", "phi", "t5", "gpt2", "roberta"])
)
def test_permuted_vocabularies_of_other_architectures(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(name, tmp_path / "base")
    for seed, expert in enumerate("pq"):
        shutil.copytree("base", expert)
        generator = torch.Generator().manual_seed(seed)
        moved = {
            n: w + 0.1 * torch.randn(w.shape, generator=generator) if w.is_floating_point() else w
            for n, w in weights_of("base").items()
        }
        save_file(moved, Path(expert) / "model.safetensors", metadata={"format": "pt"})
    permuted("q", "pq", seed=3)
    merge(["p", "q"], "task_arithmetic", base="base", into="out")
    merge(["p", "pq"], "task_arithmetic", base="base", into="again", vocabulary="base")
    assert_same("out", "again")


def test_tied_weights_are_permuted_once(place):
    config = LlamaConfig(**{**tiny_model("causal").config.to_dict(), "tie_word_embeddings": True})
    for seed, name in enumerate(("tied", "p", "q")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            LlamaForCausalLM(config).save_pretrained(name)
        tiny_tokenizer("causal").save_pretrained(name)
    permuted("q", "pq", seed=0)
    tensors = weights_of("pq")
    save_file(  # as some tools save it
        {**tensors, HEAD: tensors[TABLE].clone()}, "pq/model.safetensors", metadata={"format": "pt"}
    )
    merge(["p", "q"], base="tied", into="out")
    merge(["p", "pq"], base="tied", into="again", vocabulary="base")
    assert_same("out", "again")
    assert HEAD not in weights_of("again")
    with_tokens("p", "wide-p", NEW, seed=0)
    assert HEAD not in weights_of("wide-p")
    merge(["wide-p", "q"], base="tied", into="united", vocabulary="union")
    united = weights_of("united")
    assert torch.equal(united[TABLE][:TOKENS], weights_of("out")[TABLE])
    assert torch.equal(united[TABLE][TOKENS:], weights_of("wide-p")[TABLE][TOKENS:])


def test_tokens_that_only_the_checkpoint_has_are_left_out_and_told(place):
    told = perdure(
        *("merge", "x", "wide", "--base", "base", "--into", "again", "--vocabulary", "base")
    )
    assert told.status == 0, told.err
    assert (
        "note: wide has another vocabulary than base, and its rows are aligned by token: 35 tokens "
        "are in both, 0 that it lacks stay unchanged, and 2 of its own (such as '<|call|>', "
        "'<|end|>') are left out"
    ) in told.err
    merge(["x", "y"], base="base", into="out")
    assert_same("out", "again")


def test_a_row_of_a_token_that_the_checkpoint_lacks_is_unchanged(place):
    spelled = (place / "y" / "tokenizer.json").read_text()
    (place / "y" / "tokenizer.json").write_text(spelled.replace('"red"', '"crimson"'))
    merge(["x", "y"], base="base", into="out", vocabulary="base")
    base, x, y, out = (weights_of(name) for name in ("base", "x", "y", "out"))
    red = tiny_tokenizer("causal").get_vocab()["red"]
    others = [row for row in range(TOKENS) if row != red]
    for name in (TABLE, HEAD):
        torch.testing.assert_close(out[name][others], (x[name] + y[name])[others] / 2)
        torch.testing.assert_close(out[name][red], (x[name] + base[name])[red] / 2)


def test_padding_is_matched_by_its_place_and_is_unchanged_beyond(place):
    """The base has 3 rows of padding, one checkpoint has 8, and another none."""
    for name, count in (("base", TOKENS + 3), ("x", TOKENS + 8)):
        model: Any = AutoModelForCausalLM.from_pretrained(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model.resize_token_embeddings(count)
        model.save_pretrained(name)
    merge(["x", "y"], "task_arithmetic", base="base", into="out", vocabulary="base")
    base, x, y, out = (weights_of(name)[HEAD] for name in ("base", "x", "y", "out"))
    assert len(out) == TOKENS + 3
    torch.testing.assert_close(out[:TOKENS], (x + 0)[:TOKENS] + y - base[:TOKENS])
    torch.testing.assert_close(out[TOKENS:], x[TOKENS : TOKENS + 3])
    words = ("x: is another model than base: vocab_size is 43 in its config.json",)
    refused(place, "merge", "x", "y", "--base", "base", "--into", "no", names=words)


def test_a_tokenizer_that_divides_otherwise_is_told(place):
    tokenizer = tiny_tokenizer("causal")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    tokenizer.save_pretrained("x")
    tokenizer = AutoTokenizer.from_pretrained("px")
    tokenizer.eos_token = "."
    tokenizer.save_pretrained("px")
    lines: list[str] = []
    merge(["x", "px"], base="base", into="out", vocabulary="base", say=lines.append)
    assert (
        "note: x has a tokenizer that divides texts otherwise than that of base (its normalizer); "
        "what is written has the base's"
    ) in lines
    assert "note: px has '.' as eos_token; what is written has the base's" in lines
    assert json.loads(Path("out/config.json").read_text())["eos_token_id"] == 2


def test_a_vocabulary_of_few_common_tokens_gives_a_warning(place):
    tokenizer = json.loads((place / "x" / "tokenizer.json").read_text())
    vocabulary = {f"{t}!" if i > 10 else t: i for t, i in tokenizer["model"]["vocab"].items()}
    tokenizer["model"]["vocab"] = vocabulary
    (place / "x" / "tokenizer.json").write_text(json.dumps(tokenizer))
    lines: list[str] = []
    merge(["x", "y"], base="base", into="out", vocabulary="base", say=lines.append)
    assert any("warning: x has only 11 of the 35 tokens of base" in line for line in lines)


# --- the union -----------------------------------------------------------------------------------


def test_the_union_has_the_tokens_of_all_with_the_means_of_their_rows(place):
    lines: list[str] = []
    result = merge(
        ["wide", "x", "wider"],
        base="base",
        into="out",
        vocabulary="union",
        weights=[1.0, 5.0, 3.0],
        dtype="bfloat16",
        say=lines.append,
    )
    assert result["vocabulary"]["added"] == NEW  # in the order of their arrival
    assert any("3 tokens are added to those of base (such as '<|call|>'" in line for line in lines)
    merge(["y", "x", "z"], base="base", into="plain", weights=[1.0, 5.0, 3.0], dtype="bfloat16")
    out, plain, wide, wider = (weights_of(n) for n in ("out", "plain", "wide", "wider"))
    for name, tensor in plain.items():
        assert torch.equal(out[name][: len(tensor)], tensor), name
    for name in (TABLE, HEAD):
        call, end = wide[name][TOKENS:]
        start, other_end = wider[name][TOKENS:]
        rows = [call, (end + 3 * other_end) / 4, start]
        torch.testing.assert_close(out[name][TOKENS:], torch.stack(rows).bfloat16())
    model: Any = AutoModelForCausalLM.from_pretrained("out")
    tokenizer = AutoTokenizer.from_pretrained("out")
    assert model.config.vocab_size == len(tokenizer) == TOKENS + 3
    assert tokenizer("red <|end|> cat")["input_ids"] == [8, TOKENS + 1, 11]
    assert tokenizer.added_tokens_decoder[TOKENS + 2].special
    assert tokenizer.decode([8, TOKENS + 1, 11], skip_special_tokens=True) == "red cat"
    assert tokenizer.eos_token_id == model.config.eos_token_id == 2
    model(torch.tensor([[8, TOKENS + 2]]))
    card = (place / "out" / "README.md").read_text()
    assert (
        "3 tokens are added to those of base (such as '<|call|>', '<|end|>', '<|start|>')" in card
    )


def test_new_tokens_take_the_rows_of_padding_first(place):
    model: Any = AutoModelForCausalLM.from_pretrained("base")
    model.resize_token_embeddings(TOKENS + 2, mean_resizing=False)
    model.save_pretrained("base")
    merge(["wide", "wider"], "task_arithmetic", base="base", into="out", vocabulary="union")
    out, wide, wider = (weights_of(name)[HEAD] for name in ("out", "wide", "wider"))
    assert len(out) == TOKENS + 3
    means = [wide[TOKENS], (wide[TOKENS + 1] + wider[TOKENS + 1]) / 2, wider[TOKENS]]
    torch.testing.assert_close(out[TOKENS:], torch.stack(means))


def test_a_union_without_new_tokens_is_the_base(place):
    merge(["px", "y"], base="base", into="out", vocabulary="union")
    merge(["px", "y"], base="base", into="again", vocabulary="base")
    assert_same("out", "again")


@pytest.mark.parametrize("kind", at_least(["union"], ["base", "union"]))
@pytest.mark.parametrize("rule", at_least(["ties"], ["ties", "opcm"]))
def test_a_stopped_merge_goes_on_to_the_same_bytes(kind, rule, place):
    def merging(into: str) -> None:
        merge(["px", "wide"], rule, base="base", into=into, vocabulary=kind)

    merging("out")
    stopped_again_and_again(lambda: merging("again"), Path("again"))
    assert_same("out", "again")


def test_what_was_begun_with_another_vocabulary_is_begun_again(place):
    """The hashes of the weights are the same, but the rows mean other tokens."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("perdure.verbs.merge.copy_beside", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            merge(["px", "y"], base="base", into="out", vocabulary="base")
    permuted("x", "other", seed=8)
    shutil.copy("other/tokenizer.json", "px/tokenizer.json")
    merge(["px", "y"], base="base", into="out", vocabulary="base")
    merge(["px", "y"], base="base", into="again", vocabulary="base")
    assert_same("out", "again")


# --- adapters and packs --------------------------------------------------------------------------


def test_adapters_are_aligned_where_they_have_rows(place):
    save_adapter("saved", 3, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    merge(["saved", "x"], base="base", into="out")
    permuted_adapter("saved", "moved")
    merge(["moved", "x"], base="base", into="again", vocabulary="base")
    assert_same("out", "again")
    save_adapter("plain", 4, target_modules=["v_proj"])
    merge(["plain"], base="base", into="lora")
    shutil.copytree("px", "tokens")
    shutil.copy("tokens/tokenizer.json", "plain/tokenizer.json")
    shutil.copy("tokens/tokenizer_config.json", "plain/tokenizer_config.json")
    lines: list[str] = []
    merge(["plain"], base="base", into="lora-again", vocabulary="base", say=lines.append)
    assert any("plain has another vocabulary than base, and it changes no rows" in x for x in lines)
    one, other = (load_file(f"{n}/adapter_model.safetensors") for n in ("lora", "lora-again"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def permuted_adapter(folder: str, to: str) -> None:
    """Copy an adapter, and put the rows that it has whole in the order of px's tokens."""
    shutil.copytree(folder, to)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"px/{name}", f"{to}/{name}")
    new = AutoTokenizer.from_pretrained("px").get_vocab()
    old = tiny_tokenizer("causal").get_vocab()
    order = torch.tensor([old[token] for token in sorted(new, key=lambda token: new[token])])
    file = Path(to) / "adapter_model.safetensors"
    tensors = {n: with_rows(w, TOKENS, order) for n, w in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def test_what_cannot_be_aligned_is_refused(place):
    def bad(*words: str, models: tuple[str, ...], kind: str = "base", options: tuple = ()) -> None:
        arguments = (*models, "--base", "base", "--into", "out", "--vocabulary", kind, *options)
        refused(place, "merge", *arguments, names=words)

    names = ("its vocabulary is not the base's (35 tokens differ", "--vocabulary base or union")
    refused(place, "merge", "px", "y", "--base", "base", "--into", "out", names=names[1:])
    bad("vocabulary 'bases' is not a choice; did you mean 'base'?", models=("x",), kind="bases")
    save_adapter("on-head", 1, target_modules=["lm_head"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"px/{name}", f"on-head/{name}")
    bad(
        "on-head: has another vocabulary than base, and adds to lm_head.weight, whose rows are",
        models=("on-head", "x"),
    )
    pack("y", "packed", base="base")
    shutil.copy("px/tokenizer.json", "packed/tokenizer.json")
    bad("packed: is a pack with another vocabulary than base; unpack it", models=("packed", "x"))
    bad(
        "px: has another vocabulary than base, and its tokenizer is to be written",
        models=("y", "px"),
        options=("--preset", "reinstruct"),
    )
    bad("rows: weights are learned with the vocabulary of the base", **learning())
    spelled = (place / "y" / "tokenizer.json").read_text()
    (place / "y" / "tokenizer.json").write_text(spelled.replace('"red"', '"crimson"'))
    bad("y: its token 'crimson' is a part of its own tokenizer", models=("y",), kind="union")
    bad(
        "wide: has tokens of its own, whose rows are weighted means, so that its weight must be",
        models=("wide", "x"),
        kind="union",
        options=("--rule", "task_arithmetic", "--weight=-1,1"),
    )
    save_adapter("on-rows", 2, target_modules=["lm_head"])
    bad("on-rows: changes rows of tokens", models=("on-rows", "wide"), kind="union")
    save_adapter("plain", 2, target_modules=["q_proj"])
    AutoTokenizer.from_pretrained("wide").save_pretrained("plain")
    bad("plain: has tokens that base has not, and no rows", models=("plain", "x"), kind="union")
    bad("plain: has tokens that base has not, and no rows", models=("plain",), kind="union")


def learning() -> dict[str, Any]:
    Path("few.jsonl").write_text('{"prompt": "the cat", "completion": " red"}\n')
    options = ("--rule", "frank_wolfe", "--rows", "few.jsonl")
    return {"models": ("wide", "x"), "kind": "union", "options": options}


def test_the_plan_has_the_numbers_of_rows(place, monkeypatch):
    read = merge(["px"], base="base", into="o1", vocabulary="base")["plan"]
    plain = merge(["x"], base="base", into="o2")["plan"]
    assert read["memory"] - plain["memory"] == 4 * TOKENS
    united = merge(["wide"], base="base", into="o3", vocabulary="union")["plan"]
    assert united["memory"] > read["memory"]


# --- arrivals ------------------------------------------------------------------------------------


def test_an_arrival_is_aligned_and_taken_out_again(place):
    """With exact sums and weights in bf16, every bit is that of the unpermuted checkpoint."""
    for name in ("base", "x", "y"):
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16)
        model.save_pretrained(name)
    shutil.rmtree("px")
    permuted("x", "px", seed=0)
    options: Any = {"keywords": {"exact": True}, "rule": "task_arithmetic"}
    for path in ("plain", "aligned"):
        init(path, base="base", method="sequential", adapter=None, guard=None)
        merge([path, "y"], **options)
    merge(["plain", "x"], **options)
    with pytest.raises(PerdureError, match="--vocabulary base or union"):
        merge(["aligned", "px"], **options)
    with pytest.raises(PerdureError, match="a lineage keeps the vocabulary of its base"):
        merge(["aligned", "px"], vocabulary="union", **options)
    entry = merge(["aligned", "px"], vocabulary="base", **options)
    found = entry["vocabulary"]
    assert (found["shared"], found["unchanged"], found["own"]) == (TOKENS, 0, 0)
    assert merge(["aligned", "px"], vocabulary="base", **options) == entry  # merged already
    assert newest("plain") == newest("aligned")
    assert "--vocabulary base" in str(rerun(Lineage("aligned")))
    assert show("aligned")["vocabulary"] == found
    assert "aligned by token: 35 in both, 0 unchanged, 0 left out" in perdure("show", "aligned").out
    spelled = (place / "px" / "tokenizer.json").read_text()
    (place / "px" / "tokenizer.json").write_text((place / "x" / "tokenizer.json").read_text())
    with pytest.raises(PerdureError, match="its tokenizer is not the one with which it arrived"):
        merge("aligned", undo=2)
    (place / "px" / "tokenizer.json").write_text(spelled)
    with pytest.raises(PerdureError, match="vocabulary: undo takes an arrival out as it was"):
        merge("aligned", undo=2, vocabulary="base")
    for path in ("plain", "aligned"):
        merge(path, undo=2)
    assert newest("plain") == newest("aligned")
    assert verify("aligned") == []


def newest(path: str) -> dict[str, list[Any]]:
    """The tensors of the newest stage of a lineage."""
    folder = Lineage(path).folder(Lineage(path).stages[-1])
    return {
        f"{file.name} {name}": tensor.tolist()
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def test_an_adapter_without_rows_arrives_in_a_lineage(place):
    save_adapter("plain", 4, target_modules=["q_proj", "v_proj"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"px/{name}", f"plain/{name}")
    init("line", base="base", method="sequential", adapter={"r": 3}, guard=None)
    with pytest.raises(PerdureError, match="--vocabulary base aligns tokens"):
        merge(["line", "plain"])
    entry = merge(["line", "plain"], rule="task_arithmetic", vocabulary="base")
    assert entry["vocabulary"]["shared"] == TOKENS
    merge("line", undo=1)
    assert verify("line") == []
