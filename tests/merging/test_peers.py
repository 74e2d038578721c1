"""Rules beside mergekit's and PEFT's on the same checkpoints, where the definitions agree.

What the two give is stored (`peers.py` says how it was made). Left out are mergekit's dare, whose
draws are those of a global generator and which rescales by a ratio of L1 norms where Perdure and
the paper divide by the density, and PEFT's `linear`, `ties` and others without `_svd`, which add
the factors A and B on their own.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from merging.models import weights_of
from merging.peers import FILE, MERGEKIT, NEW, PEFT, WORDS, save_all
from perdure.api import merge
from perdure.merging.rules import dare


pytestmark = pytest.mark.own
EPSILON = torch.finfo(torch.float32).eps
# Each is a sum of a few products in fp32, in another order of operations.
SUM = 16 * EPSILON
# Of an SVD in fp32 and the product of its factors, relative to the largest singular value.
SVD = 64 * EPSILON


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    save_all(folder)
    return folder


@pytest.fixture
def merged(checkpoints, tmp_path, monkeypatch):
    """Merge checkpoints on the base, and return the tensors of the result."""
    monkeypatch.chdir(checkpoints)

    def merged(names: str, rule: str, **options: Any) -> dict[str, Tensor]:
        into = tmp_path / "out"
        merge(names.split(), rule, base="base", into=into, **options)
        return weights_of(into)

    return merged


def stored(case: str) -> dict[str, Tensor]:
    """What a peer gives in a case, by the names of the tensors."""
    tensors = load_file(FILE)
    return {
        name.removeprefix(f"{case}: "): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{case}: ")
    }


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor], share: float = SUM) -> None:
    """All tensors differ by at most a share of the largest magnitude of each."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        limit = share * tensor.abs().max()
        assert ours[name].shape == tensor.shape, name
        assert (ours[name] - tensor).abs().max() <= limit, name


def test_the_fixtures_are_small_and_say_what_they_were_made_with():
    assert FILE.stat().st_size < 100_000
    with safe_open(FILE, "pt") as opened:
        assert {"mergekit", "peft", "torch"} <= opened.metadata().keys()
        cases = {name.partition(": ")[0] for name in opened.keys()}  # noqa: SIM118
    assert cases == {*(f"mergekit {one}" for one in MERGEKIT), *(f"peft {one}" for one in PEFT)}


# --- mergekit ------------------------------------------------------------------------------------


def test_average_is_linear(merged):
    ours = merged("a b c", "average", weights=[0.5, 1.0, 2.0])
    assert_near(ours, stored("mergekit linear"))


def test_task_arithmetic_is_the_same_without_its_normalisation(merged):
    """With `normalize: true`, mergekit divides by the sum of the weights."""
    weights = [0.5, -0.25, 2.0]
    ours = merged("a b c", "task_arithmetic", weights=weights, keywords={"scale": 0.8})
    assert_near(ours, stored("mergekit task_arithmetic"))


def test_ties_is_the_same_where_both_keep_as_many(merged):
    """In each tensor, mergekit keeps int(density n) elements, Perdure round(density n), equal here.

    mergekit trims norms as well, which the fixture's `density` for norms turns off. Its
    `normalize: true` divides by the weights of those that agree, as Perdure always does.
    """
    keywords = {"density": 0.5, "scale": 0.8}
    ours = merged("a b c", "ties", weights=[0.5, 1.0, 2.0], keywords=keywords)
    assert_near(ours, stored("mergekit ties"))


def test_breadcrumbs_is_the_same_where_both_keep_as_many(merged):
    """Of the counts and of norms holds what holds of ties; mergekit takes both by int()."""
    keywords = {"density": 0.5, "gamma": 0.25}
    ours = merged("a b c", "breadcrumbs", weights=[0.5, 1.0, 2.0], keywords=keywords)
    assert_near(ours, stored("mergekit breadcrumbs"))


def test_slerp_between_weights_is_slerp(merged):
    """The arc begins at mergekit's base, which is Perdure's first checkpoint."""
    assert_near(merged("a b", "slerp", keywords={"t": 0.3}), stored("mergekit slerp"))


def test_slerp_between_task_vectors_is_nuslerp(merged):
    """The t of mergekit is the share of the second weight."""
    ours = merged("a b", "slerp", keywords={"t": 0.3, "between": "task_vectors"})
    assert_near(ours, stored("mergekit nuslerp"))


def test_model_stock_is_the_same_where_the_changes_agree(merged):
    """Only Perdure keeps t in [0, 1], where it is with mean cosines >= 0, as here."""
    assert_near(merged("a b c", "model_stock"), stored("mergekit model_stock"))


def test_rows_are_aligned_as_with_the_tokenizer_of_the_base(merged):
    """A token that a checkpoint lacks has the base's row in mergekit: no change, as here."""
    ours = merged("permuted lacking", "task_arithmetic", vocabulary="base")
    assert_near(ours, stored("mergekit vocabulary base"))


def test_rows_of_new_tokens_are_those_of_the_union(merged, checkpoints, tmp_path):
    """With equal weights, as here; mergekit fills in an unweighted mean where a token is lacking.

    So in mergekit the mean counts as the row of a checkpoint that lacks the token, and with other
    weights the result differs from the weighted mean of those that have it.
    """
    ours = merged("one both c", "average", vocabulary="union")
    assert_near(ours, stored("mergekit vocabulary union"))
    vocabulary = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert vocabulary == {token: number for number, token in enumerate([*WORDS, *NEW])}
    assert len(ours["lm_head.weight"]) == len(vocabulary)


# --- PEFT ----------------------------------------------------------------------------------------


def changes(merged: dict[str, Tensor], checkpoints: Path) -> dict[str, Tensor]:
    """What adapters have changed of the weights that they have."""
    base = weights_of(checkpoints / "base")
    return {n: w - base[n] for n, w in merged.items() if "q_proj" in n or "o_proj" in n}


@pytest.mark.parametrize("case", ["cat", "svd"])
def test_a_sum_of_adapters_is_theirs_with_cat_and_svd(case, merged, checkpoints):
    ours = merged("p q", "task_arithmetic", weights=[0.5, 2.0], full=True)
    assert_near(changes(ours, checkpoints), stored(f"peft {case}"), SVD)


def test_ties_of_adapters_is_theirs_with_equal_weights(merged, checkpoints):
    """PEFT elects the sign without weights, and divides by the number of those that agree.

    So with equal weights w it gives w times the mean, which is Perdure's with the scale w.
    """
    keywords = {"density": 0.5, "scale": 0.5}
    ours = merged("p q", "ties", keywords=keywords, full=True)
    assert_near(changes(ours, checkpoints), stored("peft ties_svd"), SVD)


def test_pruned_adapters_are_breadcrumbs_that_drop_no_large_changes(merged, checkpoints):
    keywords = {"density": 0.5, "gamma": 0.0}
    ours = merged("p q", "breadcrumbs", weights=[0.5, 2.0], keywords=keywords, full=True)
    assert_near(changes(ours, checkpoints), stored("peft magnitude_prune_svd"), SVD)


def test_dare_of_adapters_is_theirs_with_their_draws(merged, checkpoints, monkeypatch):
    """The draws of the two differ, so PEFT's masks, which are stored, are used here as well."""
    found = stored("peft dare_linear_svd")
    masks = iter([found.pop(f"mask {number}").flatten() for number in range(4)])
    # PEFT draws for each module in the model's order, q before o; Perdure in the names' order.
    of_q, of_o = [next(masks), next(masks)], [next(masks), next(masks)]
    in_turn = iter([*of_o, *of_q])
    monkeypatch.setattr(dare, "uniform", lambda seed, offset, count: 1.0 - next(in_turn))
    keywords = {"density": 0.5}
    ours = merged("p q", "dare", weights=[0.5, 2.0], keywords=keywords, full=True)
    assert_near(changes(ours, checkpoints), found, SVD)
