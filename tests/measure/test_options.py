"""The options of a row share the pass of their prompt, and are as probable as they are alone."""

import pytest
import torch

from perdure.data.rows import answered
from perdure.data.tokens import features
from perdure.measure import options as options_module
from perdure.measure.batches import evaluating
from perdure.measure.likelihood import log_likelihoods
from perdure.measure.options import can_share, option_likelihoods
from perdure.measure.predict import predict
from perdure.models.base import load_base
from perdure.train.step import task_loss
from train.engine import tiny_base
from zoo import ARCHITECTURES, make


# An xlstm of this size does not run, and is refused as a base.
GENERATIVE = [n for n, (kind, _) in ARCHITECTURES.items() if kind != "encoder" and n != "xlstm"]
# Rotary positions, learned ones, ALiBi, a sliding window, a state instead of a cache, T5, BART.
ALWAYS = ("llama", "gpt2", "bloom", "gemma2", "mamba", "t5", "bart")
WORDS = ("red", "dog", "green blue bird", "cat dog")
PROMPTS = ("alpha", "beta gamma delta alpha beta red", "red green", "cat dog " * 9 + "bird")


def pairs_of(base, prompts=PROMPTS, options=WORDS, max_length=64):
    rows = [{"prompt": f"{prompt} ", "completion": o} for prompt in prompts for o in options]
    return features(
        rows,
        base.tokenizer,
        kind=base.kind,
        max_length=max_length,
        max_completion_length=16,
        labels=None,
        where="the rows",
    )[0]


def passed(base) -> list[tuple[int, int]]:
    """The rows and tokens of each pass that follows."""
    shapes = []

    def see(module, arguments, inputs):
        ids = inputs.get("input_ids", inputs.get("decoder_input_ids"))
        shapes.append(tuple(ids.shape))

    base.model.register_forward_pre_hook(see, with_kwargs=True)
    return shapes


@pytest.mark.own
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ALWAYS else pytest.mark.slow) for n in GENERATIVE],
)
def test_they_are_as_probable_as_alone_in_every_architecture(name, tmp_path):
    base = load_base(str(make(name, tmp_path, std=0.3)), None, 0)
    pairs = pairs_of(base)
    with evaluating(base.model):
        alone = [log_likelihoods(base, [pair], 1)[0] for pair in pairs]
        for batch_size in (1, 8, 64):
            ours = option_likelihoods(base, pairs, len(WORDS), batch_size, "the rows")
            assert ours == pytest.approx(alone, rel=1e-4, abs=1e-4)
    assert can_share(base) or name not in ("llama", "gpt2", "bloom", "gemma2", "t5", "bart")


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_with_an_adapter_too_and_a_prompt_passes_once(kind):
    base = tiny_base(kind)
    pairs = pairs_of(base)
    with evaluating(base.model):
        alone = [log_likelihoods(base, [pair], 1)[0] for pair in pairs]
        shapes = passed(base)
        ours = option_likelihoods(base, pairs, len(WORDS), 64, "the rows")
    assert ours == pytest.approx(alone, rel=1e-4, abs=1e-5)
    longest = max(len(pair["labels"]) for pair in pairs)
    if kind == "causal":
        prompts, answers = shapes
        assert prompts[0] == len(PROMPTS)
        assert answers == (len(pairs), 3)  # the last token of the longest option predicts nothing
    else:
        assert shapes == [(len(pairs), longest)]


def test_options_of_one_token_take_one_pass():
    base = tiny_base("causal")
    pairs = pairs_of(base, options=("red", "dog"))
    for pair in pairs:  # without the end token
        pair["input_ids"], pair["labels"] = pair["input_ids"][:-1], pair["labels"][:-1]
    with evaluating(base.model):
        alone = [log_likelihoods(base, [pair], 1)[0] for pair in pairs]
        shapes = passed(base)
        ours = option_likelihoods(base, pairs, 2, 64, "the rows")
    assert ours == pytest.approx(alone, rel=1e-4, abs=1e-5)
    assert len(shapes) == 1


def test_prompts_that_a_long_option_cuts_shorter_are_run_as_pairs(monkeypatch):
    base = tiny_base("causal")
    pairs = pairs_of(base, max_length=12)
    with evaluating(base.model):
        alone = [log_likelihoods(base, [pair], 1)[0] for pair in pairs]
        together = []
        plain = options_module.log_likelihoods

        def seen(base, rows, *more):
            together.append(len(rows))
            return plain(base, rows, *more)

        monkeypatch.setattr(options_module, "log_likelihoods", seen)
        ours = option_likelihoods(base, pairs, len(WORDS), 64, "the rows")
    assert ours == pytest.approx(alone, rel=1e-4, abs=1e-5)
    assert together == [len(WORDS)]  # those of the long prompt


@pytest.mark.own
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt2", "mpt"])
def test_padding_does_not_reach_beyond_the_last_position(name, tmp_path):
    """The longest prompt just fits with its own options, but not with those of the other."""
    base = load_base(str(make(name, tmp_path, std=0.3)), None, 0)
    long = {"input_ids": [4 + i % 9 for i in range(62)], "answers": [[5, 2], [6, 2]]}
    short = {"input_ids": [4, 5], "answers": [[5, 6, 7, 8, 2], [6, 7, 8, 9, 2]]}
    pairs = [
        {
            "input_ids": row["input_ids"] + ids,
            "labels": [-100] * len(row["input_ids"]) + ids,
        }
        for row in (long, short)
        for ids in row["answers"]
    ]
    with evaluating(base.model):
        alone = [log_likelihoods(base, [pair], 1)[0] for pair in pairs]
        for batch_size in (2, 32):
            ours = option_likelihoods(base, pairs, 2, batch_size, "the rows")
            assert ours == pytest.approx(alone, rel=1e-4, abs=1e-4)


@pytest.mark.own
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_a_token_of_the_prompt_activates_needs_whole_rows(tmp_path):
    folder = str(make("llama", tmp_path, std=0.3))
    token = load_base(folder, None, 0).tokenizer.convert_tokens_to_ids("bird")
    targets = ["q_proj", "lm_head"]
    adapter = {"alora_invocation_tokens": [token], "target_modules": targets}
    base = load_base(folder, adapter, 0)
    base.model.eval()
    for name, parameter in base.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    assert not can_share(base)
    ids = torch.tensor([[4, 5, token, 7, 8], [5, token, 7, 9, 10]])
    labels = torch.tensor([[-100, -100, -100, 7, 8], [-100, -100, 7, 9, 10]])
    logits = base.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    ours, _ = task_loss(base.model, base.model, batch, "causal")
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_choice_is_the_most_probable_option(kind):
    base = tiny_base(kind)
    rows = [{"prompt": f"{prompt} ", "completion": "red"} for prompt in PROMPTS]
    chosen, _ = predict(base, rows, "options", WORDS, 64, 16)
    options = sorted(WORDS)
    for row, answer in zip(rows, chosen, strict=True):
        pairs = pairs_of(base, [row["prompt"].strip()], options)
        with evaluating(base.model):
            scores = torch.tensor([log_likelihoods(base, [pair], 1)[0] for pair in pairs])
        assert options[int(scores.argmax())] == answer
        assert answered(row, answer)["completion"] == answer
