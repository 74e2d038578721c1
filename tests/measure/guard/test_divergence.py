"""The KL divergence, against a loop over tokens without batches."""

import math
from dataclasses import replace

import pytest
import torch
from asked import ROWS, TEMPLATE, subject
from peft import LoraConfig, get_peft_model

from perdure.config import Gate
from perdure.errors import NotFiniteError
from perdure.measure.gate import beyond, open_limits
from perdure.measure.guard.divergence import mean_divergence, same_vocabulary
from perdure.measure.guard.guard import ask, guard, words
from perdure.measure.guard.subject import Subject
from perdure.models.base import Base
from tiny import tiny_model


pytestmark = pytest.mark.own


def next_token(subject: Subject, prompt: list[int], answer: list[int]) -> list[float]:
    """The probabilities of the token after a prompt and the beginning of an answer."""
    model = subject.base.model
    with torch.no_grad(), subject.context():
        if subject.base.kind == "causal":
            logits = model(input_ids=torch.tensor([prompt + answer])).logits
        else:
            decoder = torch.tensor([[0, *answer]])
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits
    return logits[0, -1].double().softmax(-1).tolist()


def slow(reference: Subject, subject: Subject, answers) -> float:
    values = []
    for answer in answers:
        for place in range(len(answer.ids)):
            p = next_token(reference, answer.prompt, answer.ids[:place])
            q = next_token(subject, answer.prompt, answer.ids[:place])
            values.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return sum(values) / len(values)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_it_is_the_mean_over_all_tokens_of_the_answers(kind):
    one, other = subject(kind, 0), subject(kind, 1)
    answers = ask(one, ROWS, in_template=False, max_new_tokens=5)
    answers = [replace(answer, ids=answer.ids[: i % 5 + 1]) for i, answer in enumerate(answers)]
    expected = slow(one, other, answers)
    assert expected > 0.05
    for batch_size in (1, 5):
        assert mean_divergence(one, other, answers, batch_size) == pytest.approx(expected, rel=1e-4)
    assert mean_divergence(other, one, answers, 5) == pytest.approx(
        slow(other, one, answers), rel=1e-4
    )


def test_it_is_zero_between_equal_models():
    one = subject("causal", 0)
    answers = ask(one, ROWS, in_template=False, max_new_tokens=5)
    assert mean_divergence(one, subject("causal", 0), answers, 4) == 0


def test_two_subjects_may_share_a_network():
    base = subject("causal", 0, template=TEMPLATE).base
    answers = ask(Subject("base", base), ROWS, in_template=True, max_new_tokens=5)
    plain = subject("causal", 0)
    adapted = get_peft_model(base.model, LoraConfig(target_modules=["q_proj", "down_proj"]))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    shared = Base("adapted", "causal", adapted.eval(), base.tokenizer)
    now, before = Subject("now", shared), Subject("before", shared, shared.peft.disable_adapter)
    divergence = mean_divergence(before, now, answers, 4)
    assert divergence is not None
    assert divergence > 0.01
    assert divergence == pytest.approx(slow(plain, now, answers), rel=1e-4)


def test_an_answer_that_is_the_end_token_alone_counts_one_token():
    one, other = subject("causal", 0), subject("causal", 1)
    (answer, *_) = ask(one, ROWS[:1], in_template=False, max_new_tokens=1)
    assert len(answer.ids) == 1
    assert mean_divergence(one, other, [answer], 1) == pytest.approx(
        slow(one, other, [answer]), rel=1e-4
    )


def test_there_is_none_between_different_vocabularies():
    one, other = subject("causal", 0), subject("seq2seq", 0)
    answers = ask(one, ROWS[:2], in_template=False, max_new_tokens=2)
    assert not same_vocabulary(one, other)
    assert mean_divergence(one, other, answers, 2) is None
    larger = subject("causal", 0)
    larger.base.tokenizer.add_tokens(["more"])
    assert mean_divergence(one, larger, answers, 2) is None


def test_a_broken_model_is_refused_on_either_side():
    one, other = subject("causal", 0), subject("causal", 0)
    answers = ask(one, ROWS[:2], in_template=False, max_new_tokens=2)
    with torch.no_grad():
        next(other.base.model.parameters()).fill_(math.nan)
    for reference, model in ((one, other), (other, one)):
        with pytest.raises(NotFiniteError, match="outputs are not finite"):
            mean_divergence(reference, model, answers, 2)


def test_it_is_infinite_if_a_token_of_the_answers_is_ruled_out():
    one, other = subject("causal", 0), subject("causal", 0)
    answers = ask(one, ROWS[:2], in_template=False, max_new_tokens=2)
    token = answers[0].ids[0]

    def rule_out(module, inputs, outputs):
        outputs.logits[..., token] = -math.inf
        return outputs

    other.base.model.register_forward_hook(rule_out)
    assert mean_divergence(one, other, answers, 2) == math.inf
    result = guard(one, other, ROWS[:2], reference_answers=answers, answers=answers)
    assert (result["kl"], result["kl_is_infinite"]) == (None, True)
    assert "infinite" in words(result)[1]
    judged = {"old": {}, "unmeasured": [], "general": result}
    assert "inf nats" in beyond(Gate(kl=100.0), judged)[0]
    assert open_limits(Gate(kl=100.0), judged) == []


def test_the_models_are_left_as_they_were():
    one, other = subject("causal", 0), subject("causal", 1)
    other.base.model.train()
    answers = ask(one, ROWS[:2], in_template=False, max_new_tokens=2)
    mean_divergence(one, other, answers, 2)
    assert other.base.model.training
    assert not one.base.model.training
    same = tiny_model("causal").state_dict().keys()
    assert one.base.model.state_dict().keys() == same
