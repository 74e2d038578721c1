"""A base whose files lack weights of its model is refused: they would be random numbers."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from command import perdure
from perdure.errors import PerdureError
from perdure.models.as_is import load_as_is
from perdure.models.base import load_base, read_base
from tiny import save_tiny


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for kind in ("causal", "encoder"):
        save_tiny(kind, folder / kind)
    return folder


@pytest.fixture
def changed(bases, tmp_path):
    """Makes a base with other tensors in its file or other settings in config.json."""

    def change(tensors=lambda stored: stored, kind="causal", **settings) -> str:
        base = tmp_path / "base"
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(bases / kind, base)
        save_file(
            tensors(load_file(base / "model.safetensors")),
            base / "model.safetensors",
            metadata={"format": "pt"},
        )
        config = json.loads((base / "config.json").read_text()) | settings
        (base / "config.json").write_text(json.dumps(config))
        return str(base)

    return change


def without(part: str):
    return lambda stored: {key: value for key, value in stored.items() if part not in key}


def test_a_base_that_lacks_weights_is_refused(changed):
    def bad(words: str, *arguments, **settings):
        base = changed(*arguments, **settings)
        for load in (lambda: load_base(base, {}, seed=0), lambda: load_as_is(base)):
            with pytest.raises(PerdureError, match=words):
                load()

    one = r": 1 weight of the model is not in its files \(first: model\.layers\.0\.mlp\.up_proj\."
    bad(one, without("layers.0.mlp.up_proj"))
    bad(
        r": 9 weights of the model are not in its files \(first: model\.layers\.0", without("rs.0.")
    )
    bad(r": 18 weights .* \(first: model\.layers\.2\.", num_hidden_layers=4)
    renamed = (
        r": 21 weights .*; 21 tensors of its files are unknown to the model \(first: x\.lm_head"
    )
    bad(renamed, lambda stored: {f"x.{key}": value for key, value in stored.items()})


def test_an_encoder_may_lack_its_pooler_and_have_a_head_but_lacks_no_layer(changed):
    warnings: list[str] = []

    def with_head(stored):
        head = next(iter(stored.values())).clone()
        return {**without("pooler")(stored), "cls.predictions.bias": head}

    load_base(changed(with_head, kind="encoder"), {}, seed=0, say=warnings.append)
    assert warnings == []
    with pytest.raises(PerdureError, match="1 weight of the model is not in its files"):
        load_base(changed(without("layer.0.output.dense.bias"), kind="encoder"), {}, seed=0)


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_layers_that_config_does_not_have_give_one_warning(changed, kind):
    warnings: list[str] = []
    load_base(changed(kind=kind, num_hidden_layers=1), {}, seed=0, say=warnings.append)
    assert len(warnings) == 1
    assert "tensors of its files are unknown to the model (first: " in warnings[0]
    assert "correct its config.json" in warnings[0]


def test_a_vocabulary_that_does_not_fit_the_weights_is_said_plainly(changed):
    words = r"vocab_size is 77 in config\.json, but lm_head\.weight has 35 rows"
    with pytest.raises(PerdureError, match=words):
        load_base(changed(vocab_size=77), {}, seed=0)
    words = r"down_proj\.weight is 32 x 64 in its files, but 32 x 5 according to config"
    with pytest.raises(PerdureError, match=words):
        load_base(changed(intermediate_size=5), {}, seed=0)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json"])
def test_a_cut_json_file_is_named(changed, name):
    base = Path(changed())
    whole = (base / name).read_text()
    for content, reason in (("", "it is empty"), (whole[:50], "line ")):
        (base / name).write_text(content)
        with pytest.raises(PerdureError, match=rf"its {name} cannot be read \(.*{reason}"):
            read_base(str(base))


def test_init_refuses_and_warns(changed, tmp_path):
    lineage = tmp_path / "lineage"
    result = perdure("init", lineage, "--base", changed(num_hidden_layers=3))
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert "not in its files" in result.err
    result = perdure("init", lineage, "--base", changed(num_hidden_layers=1))
    assert result.status == 0
    assert result.err.startswith("warning: ")
    assert result.err.count("\n") == 1
