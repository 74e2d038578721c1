"""Scoring a model: batches change nothing, options are likelihoods, bad requests are one line."""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model

import perdure.measure.predict as predict_module
from perdure.data.task import Split, Task
from perdure.errors import PerdureError
from perdure.measure.evaluate import evaluate, predict, scoring_mode
from perdure.measure.likelihood import log_likelihoods
from perdure.models.base import Base
from perdure.models.classifier import Classifier
from tiny import WORDS, tiny_model, tiny_rows, tiny_tokenizer


OPTIONS = ("red", "green cat", "blue dog up", "down")
COLOURS = ("blue", "green", "red")


def base_of(kind, seed=0):
    """A tiny model with weights large enough that its answers differ from prompt to prompt."""
    model = tiny_model(kind, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    if kind == "encoder":
        model = Classifier(model, 32)
        labels = ["red", "green", "blue", "unused"]
        model.set_head(torch.randn(4, 32, generator=generator), torch.zeros(4), labels)
    return Base(f"tiny {kind}", kind, model, tiny_tokenizer(kind))


def rows_of_many_lengths(n=24):
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i in range(n):
        words = torch.randint(len(WORDS), (1 + (7 * i) % 23,), generator=generator).tolist()
        answer = f" {COLOURS[i % 3]}"
        rows.append({"prompt": " ".join(WORDS[w] for w in words), "completion": answer})
    return rows


def colour_task(**changes):
    split = Split(tiny_rows("colour"))
    return Task(**{"name": "colour", "train": split, "test": split, **changes})


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("causal", "generate", None),
        ("seq2seq", "generate", None),
        ("causal", "options", OPTIONS),
        ("seq2seq", "options", OPTIONS),
        ("encoder", "options", COLOURS),
    ],
)
def test_batches_answer_as_the_rows_one_by_one(kind, mode, options):
    base, rows = base_of(kind), rows_of_many_lengths()
    batched, _ = predict(base, rows, mode, options, 64, 8, batch_size=7)
    alone = [predict(base, [row], mode, options, 64, 8, batch_size=1)[0][0] for row in rows]
    assert batched == alone
    assert len(set(batched)) > 1


@torch.no_grad()
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_generation_takes_the_likeliest_token_at_each_step(kind):
    base, rows = base_of(kind), rows_of_many_lengths(6)
    tokenizer, model = base.tokenizer, base.model.eval()
    for row, prediction in zip(rows, predict(base, rows, "generate", None, 64, 8)[0], strict=True):
        prompt = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        generated = [] if kind == "causal" else [model.config.decoder_start_token_id]
        for _ in range(8):
            tail = torch.tensor([generated], dtype=torch.int64)
            if kind == "causal":
                logits = model(input_ids=torch.cat([prompt, tail], 1)).logits
            else:
                logits = model(input_ids=prompt, decoder_input_ids=tail).logits
            generated.append(int(logits[0, -1].argmax()))
            if generated[-1] == tokenizer.eos_token_id:
                break
        assert prediction == tokenizer.decode(generated, skip_special_tokens=True)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_options_are_scored_by_the_sum_of_their_log_probabilities_and_the_end(kind):
    base, rows = base_of(kind), rows_of_many_lengths(12)
    tokenizer, model = base.tokenizer, base.model.eval()
    expected = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        scores = {}
        for option in OPTIONS:
            words = [*tokenizer(option, add_special_tokens=False)["input_ids"]]
            words.append(tokenizer.eos_token_id)
            score = 0.0
            for t, word in enumerate(words):
                if kind == "causal":
                    logits = model(input_ids=torch.tensor([prompt + words[:t]])).logits
                else:
                    start = [model.config.decoder_start_token_id]
                    logits = model(
                        input_ids=torch.tensor([prompt]),
                        decoder_input_ids=torch.tensor([start + words[:t]]),
                    ).logits
                score += float(logits[0, -1].log_softmax(-1)[word])
            scores[option] = score
        expected.append(max(scores, key=lambda option: scores[option]))
    assert predict(base, rows, "options", OPTIONS, 64, 8)[0] == expected


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_long_option_is_not_favoured_for_its_mean(kind):
    """The sum over the option's tokens decides, where the mean would choose the other one."""
    base, rows = base_of(kind), rows_of_many_lengths(12)
    options = ("red", "red green blue cat dog bird up down")
    lengths = [len(option.split()) + 1 for option in options]  # the end token counts
    pairs, _ = predict_module._pairs(base, rows, list(options), 64, 16, "rows")
    sums = log_likelihoods(base, pairs, 32)
    by_sum, by_mean = [], []
    for one, other in zip(sums[::2], sums[1::2], strict=True):
        by_sum.append(options[other > one])
        by_mean.append(options[other / lengths[1] > one / lengths[0]])
    assert by_sum != by_mean
    assert predict(base, rows, "options", options, 64, 16)[0] == by_sum


def test_an_encoder_chooses_among_the_options_its_head_knows():
    base, rows = base_of("encoder"), rows_of_many_lengths()
    assert set(predict(base, rows, "options", ("red", "blue"))[0]) == {"red", "blue"}
    assert set(predict(base, rows, "options", ("red", "never seen"))[0]) == {"red"}


def test_the_score_is_unknown_while_the_head_knows_no_option():
    animals = Split(tiny_rows("animal"))
    cell, predictions = evaluate(base_of("encoder"), Task("animal", animals, test=animals))
    assert (cell.score, cell.mode, cell.rows) == (None, "options", 40)
    assert (predictions.answers, predictions.scores) == ([], [])


def test_a_tie_goes_to_the_option_that_sorts_first():
    base = base_of("encoder")
    with torch.no_grad():
        base.model.weight.zero_()
        base.model.bias.zero_()
    rows = rows_of_many_lengths(3)
    assert predict(base, rows, "options", ("red", "green", "blue"))[0] == ["blue"] * 3


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "encoder"])
def test_the_best_of_a_rows_right_answers_counts(kind):
    base, mode = base_of(kind), "options" if kind == "encoder" else "generate"
    rows = list(tiny_rows("colour", 6))
    model_answers, _ = predict(base, rows, mode, COLOURS, 64, 8)
    also = [
        {**row, "references": ["up", text]} for row, text in zip(rows, model_answers, strict=True)
    ]
    task = colour_task(test=Split(tuple(also)), options=COLOURS)
    cell, answers = evaluate(base, task, mode, max_length=64, max_completion_length=8)
    assert answers.answers == model_answers  # nothing that is shown to the model depends on them
    assert cell.score == 1.0


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "encoder"])
def test_the_score_is_the_mean_of_the_metric_over_the_test_rows(kind):
    base, task = base_of(kind), colour_task()
    cell, predictions = evaluate(base, task, mode="options", batch_size=16)
    pairs = zip(predictions.answers, task.test.rows, strict=True)
    right = [answer == row["completion"] for answer, row in pairs]
    assert predictions.scores == right
    assert cell.score == sum(right) / 40
    assert (cell.metric, cell.mode, cell.rows, cell.truncated) == ("exact_match", "options", 40, 0)
    assert set(predictions.answers) <= set(COLOURS)


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "encoder"])
def test_scoring_leaves_the_model_and_the_global_generator_as_they_were(kind):
    base = base_of(kind).model.train()
    frozen = next(module for module in base.modules() if isinstance(module, torch.nn.Embedding))
    frozen.eval()
    base = Base(kind, kind, base, tiny_tokenizer(kind))
    modes = [module.training for module in base.model.modules()]
    state = torch.get_rng_state()
    training_modes = set()
    base.model.register_forward_pre_hook(lambda model, _: training_modes.add(model.training))
    evaluate(base, colour_task(), max_completion_length=8)
    assert training_modes == {False}
    assert [module.training for module in base.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in base.model.parameters())


# PEFT 0.21 asks a model of transformers 5.23 for it: https://github.com/huggingface/peft
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_an_adapter_answers_as_the_same_weights_merged(kind):
    base, rows = base_of(kind), rows_of_many_lengths(12)
    settings = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "q", "v"], init_lora_weights=False
    )
    settings.task_type = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}[kind]
    torch.manual_seed(0)  # PEFT draws the factors
    adapted = Base(base.name, base.kind, get_peft_model(base.model, settings), base.tokenizer)
    generated = predict(adapted, rows, "generate", None, 64, 8)
    chosen = predict(adapted, rows, "options", OPTIONS, 64, 8)
    merged = Base(base.name, base.kind, adapted.model.merge_and_unload(), base.tokenizer)
    assert predict(merged, rows, "generate", None, 64, 8) == generated
    assert predict(merged, rows, "options", OPTIONS, 64, 8) == chosen


def test_a_base_that_comes_with_sampling_settings_is_still_greedy_and_silent(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    base, rows = base_of("causal"), rows_of_many_lengths(12)
    greedy = predict(base, rows, "generate", None, 64, 8)
    base.model.generation_config.update(
        do_sample=True, temperature=1.7, top_p=0.8, top_k=20, repetition_penalty=5.0, max_length=20
    )
    with caplog.at_level(logging.WARNING):
        assert predict(base, rows, "generate", None, 64, 8) == greedy
    assert not caplog.records


def test_an_answer_ends_at_the_models_own_end_tokens_too():
    base, rows = base_of("causal"), rows_of_many_lengths(12)
    words = predict(base, rows, "generate", None, 64, 8)[0][0].split()
    base.model.generation_config.eos_token_id = [2, base.tokenizer.convert_tokens_to_ids(words[2])]
    cut = predict(base, rows, "generate", None, 64, 8)[0][0].split()
    assert cut == words[: words.index(words[2]) + 1]


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_what_the_reference_says_does_not_change_what_is_generated(kind):
    base, rows = base_of(kind), rows_of_many_lengths(6)
    others = [{**row, "completion": " ".join(WORDS)} for row in rows]
    assert predict(base, rows, "generate", None, 16, 4) == predict(
        base, others, "generate", None, 16, 4
    )


@pytest.mark.parametrize(
    ("kind", "mode"), [("causal", "generate"), ("causal", "options"), ("encoder", "options")]
)
def test_rows_whose_prompt_is_cut_are_counted(kind, mode):
    rows = [{"prompt": "red " * length, "completion": "red"} for length in (3, 30, 40)]
    task = colour_task(test=Split(tuple(rows)))
    cell, predictions = evaluate(base_of(kind), task, mode, max_length=20, max_completion_length=4)
    assert cell.truncated == 2
    assert len(predictions.answers) == 3


def test_an_option_stands_between_the_white_space_of_the_answer_it_replaces(monkeypatch):
    encoded_rows, real = [], predict_module.features
    monkeypatch.setattr(
        predict_module,
        "features",
        lambda rows, *rest, **settings: encoded_rows.extend(rows) or real(rows, *rest, **settings),
    )
    rows = [{"prompt": "the answer is :", "completion": "\nred\n"}]
    predict(base_of("causal"), rows, "options", ("green", " blue "))
    assert [row["completion"] for row in encoded_rows] == ["\nblue\n", "\ngreen\n"]


def test_messages_are_answered_as_the_prompt_that_their_template_makes():
    base = base_of("causal")
    base.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }} {% if m.role == 'assistant' %}</s>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
    )
    words, ask = "question the cat", {"role": "user", "content": "question the cat"}
    reply = [{"role": "assistant", "content": "red"}]
    forms = [
        {"messages": [ask, *reply]},
        {"prompt": [ask], "completion": reply},
        {"prompt": f"user : {words} assistant : ", "completion": "red"},
    ]
    for mode in ("generate", "options"):
        answers, _ = predict(base, forms, mode, COLOURS, 64, 8)
        assert answers == [answers[0]] * 3


@pytest.mark.parametrize(
    ("kind", "mode", "changes", "message"),
    [
        ("causal", None, {"test": None}, "'colour' has no test rows"),
        ("causal", None, {"test": Split(())}, "'colour' has no test rows"),
        ("causal", None, {"metric": "exact"}, "unknown metric 'exact'; did you mean 'exact_match'"),
        ("causal", "option", {}, "unknown scoring mode 'option'; did you mean 'options'"),
        ("encoder", "generate", {}, "colour test: an encoder cannot generate"),
        ("causal", None, {"test": Split(({"text": "red"},))}, "colour test: a row of text"),
        (
            "causal",
            "options",
            {"train": Split(tuple({"prompt": "a", "completion": str(i)} for i in range(51)))},
            "colour test: .* declare `options:` or score with mode generate",
        ),
    ],
)
def test_what_cannot_be_scored_is_one_line_before_any_model_is_needed(kind, mode, changes, message):
    with pytest.raises(PerdureError, match=message):
        scoring_mode(kind, colour_task(**changes), mode)


def test_the_mode_is_options_for_encoders_and_generate_for_models_that_write():
    assert scoring_mode("encoder", colour_task()) == "options"
    assert (
        scoring_mode("causal", colour_task())
        == scoring_mode("seq2seq", colour_task())
        == "generate"
    )
    assert scoring_mode("causal", colour_task(), "options") == "options"


def test_an_option_that_is_too_long_is_named_with_its_row():
    with pytest.raises(PerdureError, match=r"with option 'red green blue', row 1: .* 4 tokens"):
        predict(base_of("causal"), rows_of_many_lengths(2), "options", ("red green blue",), 64, 3)


@pytest.mark.parametrize("left_out", [{"weight": 0}, {"train": False}])
def test_a_turn_that_is_left_out_is_no_reference(left_out):
    ask = {"role": "user", "content": "the cat ?"}
    rows = [{"messages": [ask, {"role": "assistant", "content": "red", **left_out}]}]
    with pytest.raises(PerdureError, match=r"rows, row 1: its answer is left out by weight: 0"):
        predict(base_of("causal"), rows, "generate", None, 64, 8, where="rows")
