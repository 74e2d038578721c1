"""What differs by architecture and is found by trying: positions, batches, adapter targets."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from perdure.errors import PerdureError
from perdure.measure.batches import batches
from perdure.measure.likelihood import log_likelihoods
from perdure.measure.predict import predict
from perdure.models.base import load_base
from perdure.models.decoder import decoder_inputs
from perdure.models.limits import Limits, limits
from perdure.models.targets import fitting_adapter
from zoo import ARCHITECTURES, config_of, make


COUNT_FROM_TWO = (
    "roberta",
    "xlm-roberta-xl",
    "data2vec-text",
    "ibert",
    "esm",
    "luke",
    "longformer",
)


@pytest.mark.parametrize("name", COUNT_FROM_TWO)
def test_an_encoder_that_counts_from_the_padding_on_has_two_positions_less(name):
    config = config_of(name)
    assert config.max_position_embeddings == 66
    assert limits(config, "encoder").positions == 64


def test_an_encoder_with_another_padding_token_has_as_many_less_as_its_embedding_says():
    assert limits(config_of("roberta", pad_token_id=3), "encoder").positions == 62


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bert", "modernbert"])
def test_what_a_base_says_of_its_positions_is_what_it_takes(name):
    assert limits(config_of(name), ARCHITECTURES[name][0]) == Limits(64, None, 22)


def test_a_decoder_has_positions_of_its_own():
    assert limits(config_of("led"), "seq2seq") == Limits(64, 32, 22)
    assert limits(config_of("t5", max_position_embeddings=None), "seq2seq") == Limits(
        None, None, 22
    )


def test_no_weights_are_made_to_find_out():
    huge = config_of("llama", hidden_size=2**14, intermediate_size=2**16, vocab_size=2**17)
    assert limits(huge, "causal") == Limits(64, None, 2**17)


def test_the_targets_of_a_family_that_peft_does_not_know_are_all_linear_layers():
    assert fitting_adapter(config_of("llama"), "causal", {"r": 4}) == {"r": 4}
    adapter = fitting_adapter(config_of("granite"), "causal", {"r": 4})
    assert adapter == {"r": 4, "target_modules": "all-linear"}
    settings = {"target_modules": ["q_proj"]}
    assert fitting_adapter(config_of("granite"), "causal", settings) == settings


def test_where_peft_refuses_some_linear_layers_the_targets_are_the_others():
    adapter = fitting_adapter(config_of("mamba"), "causal", {})
    assert adapter == {"target_modules": ["dt_proj", "in_proj", "x_proj"]}


@pytest.mark.own
def test_experts_that_peft_wraps_have_no_dropout_unless_the_user_set_one():
    adapter = fitting_adapter(config_of("mixtral"), "causal", {})
    assert adapter["lora_dropout"] == 0
    settings = {"lora_dropout": 0.1}
    assert fitting_adapter(config_of("mixtral"), "causal", settings)["lora_dropout"] == 0.1


def test_the_decoder_is_shown_what_the_model_itself_would_show_it():
    config = config_of("m2m_100")
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    assert not hasattr(model, "prepare_decoder_input_ids_from_labels")
    ids = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 0]])
    labels = torch.tensor([[5, 6, 2], [7, 2, -100]])
    inputs = {"input_ids": ids, "attention_mask": ids.ne(0).long()}
    itself = model(**inputs, labels=labels).logits
    ours = model(**inputs, decoder_input_ids=decoder_inputs(model, labels)).logits
    torch.testing.assert_close(ours, itself)


# Attention and a masked convolution bear padding; a recurrence and a Fourier transform do not.
BEARS = {"llama": ("any", "any"), "lfm2": ("any", "any"), "bert": ("any", "any")}
BEARS |= {"fnet": ("any", "equal"), "minimax": ("equal", "any"), "rwkv": ("single", "any")}


@pytest.mark.parametrize("name", BEARS)
def test_which_batches_a_base_bears_is_found_by_trying(name, tmp_path):
    base = load_base(str(make(name, tmp_path, std=0.3)), None, 0)
    assert (base.padding.left, base.padding.right) == BEARS[name]


ROWS = [{"prompt": "one " * n + "the cat is", "completion": "red"} for n in (1, 9, 4, 1, 9, 2)]


def test_a_base_whose_positions_turn_with_the_longest_text_takes_texts_of_equal_length(tmp_path):
    scaled = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 32,
    }
    over = {"rope_parameters": scaled, "original_max_position_embeddings": 32}
    folder = make("phi3", tmp_path, std=0.3, max_position_embeddings=256, **over)
    base = load_base(str(folder), None, 0)
    assert (base.padding.left, base.padding.right) == ("equal", "equal")
    rows = [{"prompt": "one " * n + "is", "completion": "red"} for n in (4, 60, 9)]
    together, _ = predict(base, rows, "generate", None, 128, 4, batch_size=3)
    alone = [predict(base, [row], "generate", None, 128, 4)[0][0] for row in rows]
    assert together == alone


@pytest.mark.parametrize("name", ["minimax", "rwkv"])
def test_a_recurrent_base_writes_the_same_in_a_batch_and_alone(name, tmp_path):
    base = load_base(str(make(name, tmp_path, std=0.3)), None, 0)
    together, _ = predict(base, ROWS, "generate", None, 32, 4, batch_size=6)
    alone = [predict(base, [row], "generate", None, 32, 4)[0][0] for row in ROWS]
    assert together == alone


def test_an_encoder_that_mixes_padding_in_is_scored_in_batches_of_equal_length(tmp_path):
    base = load_base(str(make("fnet", tmp_path, std=0.3)), None, 0)
    base.model.grow(("red", "blue", "green"), seed=1)  # type: ignore[operator]
    sizes = []
    base.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    predict(base, ROWS, "options", ["red", "blue", "green"], batch_size=6)
    assert sorted(sizes) == [(1, 7), (1, 9), (2, 6), (2, 14)]


def test_rows_apart_never_share_a_batch():
    texts = [[0] * n for n in (3, 5, 3, 4)]
    assert list(batches(texts, 8)) == [[1, 3, 0, 2]]
    assert list(batches(texts, 8, "equal")) == [[1], [3], [0, 2]]
    assert list(batches(texts, 8, "single")) == [[1], [3], [0], [2]]
    assert list(batches(texts, 8, "any", [1, 2, 1, 2])) == [[1, 3], [0, 2]]


def test_a_base_that_cannot_be_run_is_refused_with_its_own_reason(tmp_path):
    base = load_base(str(make("nystromformer", tmp_path)), {"target_modules": "all-linear"}, 0)
    with pytest.raises(PerdureError, match=r"cannot be run through it \(RuntimeError: shape"):
        base.padding  # noqa: B018


def test_likelihoods_of_an_encoder_decoder_without_its_own_shift_are_those_of_rows_alone(tmp_path):
    base = load_base(str(make("blenderbot", tmp_path, std=0.3)), None, 0)
    encoded = [{"input_ids": [5] * n + [2], "labels": [6] * m + [2]} for n, m in ((3, 1), (9, 4))]
    alone = [log_likelihoods(base, [row], 1)[0] for row in encoded]
    assert log_likelihoods(base, encoded, 2) == pytest.approx(alone, abs=1e-4)
